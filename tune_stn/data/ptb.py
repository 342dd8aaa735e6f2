"""Penn Treebank, word by word, in Mikolov's version: one sentence a line, 10,000 words, the rest of them `<unk>`.

Marcus et al. 1993; Mikolov et al. 2010. The text is licensed by the Linguistic Data Consortium, so it is read where it
lies, and never fetched.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tune_stn.checked import read_whole
from tune_stn.data.corpus import read_words
from tune_stn.data.source import DataError, cache_folder, env_folder

_MOST_BYTES = 2**26  # the largest has 5 million
SPLITS = ("train", "valid", "test")
SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
HOW = (
    "its licence forbids to pass it on, so get it from the Linguistic Data Consortium (LDC99T42) or, in this version, "
    "from the `data` folder of Mikolov's RNNLM examples (simple-examples.tgz), and name the folder that holds "
    "train.txt, valid.txt and test.txt (or ptb.train.txt and so on) by `data_dir=FOLDER`"
)


def load(folder: str | Path | None = None) -> dict[str, list[str]]:
    """Words of each split, `train`, `valid` and `test`, with `<eos>` at the end of every line.

    Args:
        folder: Folder of the files; default the first place that `find` looks at and that has them.

    Raises:
        DataError: the files are not found, or their content is not the official one.
    """
    found = find(folder)
    words = {}
    for split in SPLITS:
        path = _existing(found, split)
        assert path is not None
        try:
            content = read_whole(path, most=_MOST_BYTES)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError:
            content = b""  # none of them is so large
        if hashlib.sha256(content).hexdigest() != SHA256[split]:
            raise DataError(f"{path} is not the official Penn Treebank text ({split}); {HOW}")
        words[split] = read_words(path)
    return words


def find(folder: str | Path | None = None) -> Path:
    """The folder that holds the three files.

    A folder that is given is the only one looked at. Otherwise, in this order: `$TUNE_STN_DATA/ptb`, the user's cache.

    Raises:
        DataError: none has them all; says where it looked and how to get them.
    """
    if folder is not None:
        candidates = [Path(folder).expanduser()]
    else:
        candidates = [place for place in (env_folder("ptb"), cache_folder("ptb")) if place is not None]
    for candidate in candidates:
        if all(_existing(candidate, split) is not None for split in SPLITS):
            return candidate
    raise DataError(f"Penn Treebank not found in {', '.join(map(str, candidates))}: {HOW}")


def _existing(folder: Path, split: str) -> Path | None:
    return next((path for path in (folder / f"{split}.txt", folder / f"ptb.{split}.txt") if path.is_file()), None)
