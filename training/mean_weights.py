"""The mean of networks of one kind that were trained on from one another (Wortsman et al., 2022, arXiv 2203.05482).

``python -m training.mean_weights FOLDER FOLDER [...] --out DIR``
"""

from collections.abc import Sequence

import numpy as np

from reangle_jax import commands
from reangle_jax.data import files, weights_folder
from reangle_jax.errors import InputError


def mean(folders: Sequence[str]) -> dict[str, np.ndarray]:
    """The mean of folders' arrays, computed in float64, in the first one's dtypes.

    Raises:
        InputError: they are not of one kind.
    """
    configs = [weights_folder.read_config(folder) for folder in folders]
    if wrong := [folder for folder, config in zip(folders, configs, strict=True) if config != configs[0]]:
        raise InputError(f"{wrong[0]} is of another network than {folders[0]}: give folders of one kind")
    opened = [weights_folder.open_arrays(folder) for folder in folders]
    found = {}
    for name in opened[0]:
        values = [arrays[name].read(()) for arrays in opened]
        found[name] = np.mean([value.astype(np.float64) for value in values], 0).astype(values[0].dtype)
    return found


def main() -> None:
    """The command."""
    parser = commands.parser(__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="weights")
    parser.add_argument("--out", required=True, help="where the mean goes")
    args = parser.parse_args()
    weights_folder.save_arrays(args.out, mean(args.folders))
    files.atomic_write_json(f"{args.out}/{weights_folder.CONFIG}", weights_folder.read_config(args.folders[0]))


if __name__ == "__main__":
    commands.run(main)
