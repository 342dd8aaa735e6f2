"""Records any run of Ray Tune as the tables `reports` and `schedule`.

A result or event of Tune becomes a line (`lines`, which reads results through `result_reader` and finds copies of
checkpoints through `lineage`); the line goes into the `journal` and is counted in the `ledger`; and the journal becomes
`tables`, which `directory` writes. `record` has the journal with its ledger; `recorder` is the callback of Ray Tune.
"""
