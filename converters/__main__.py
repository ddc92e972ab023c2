"""Published checkpoints to ours and back.

python -m converters NAME --source DIR_OR_FILE_OR_REPO_ID --out DIR [--dtype bfloat16]
python -m converters NAME --source DIR_OR_FILE --check
python -m converters NAME --source OUR_DIR --out DIR --to-torch
python -m converters --list
python -m converters lora-import ... | lora-export ...
"""

import sys

from converters.command import main
from reangle_jax import stopping

if __name__ == "__main__":
    stopping.run(lambda: main(sys.argv[1:]))
