#!/usr/bin/env bash
""":"
# Valid shell and valid Python. Run by a shell, it starts DeepSpeed's launcher on itself; run by the launcher
# (deepspeed launch.sh FLAGS...), it is the worker. See: ./launch.sh --help
root="$(cd "$(dirname "$0")" && pwd)"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec python3 -m deconattn.launch.launcher "$0" "$@"
":"""

from deconattn.launch.worker import main

if __name__ == "__main__":
    main()
