"""tools/reproduce.py with stand-ins for the commands that it runs and for its estimates, which need PyTorch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from deconattn.cli import run
from deconattn.commands import reproduce
from deconattn.reproduction import estimate, jobs
from deconattn.reproduction.estimate import Estimate

FAKE = [sys.executable, str(Path(__file__).with_name("fake_tools.py"))]

if __name__ == "__main__":
    for name in ("train", "evaluate", "analyze"):
        setattr(jobs, name.upper(), [*FAKE, name])
    estimate.estimate_runs = lambda request, runs: {  # type: ignore[assignment]
        planned.name: Estimate(1000 * number, number * 10**9, 8192, 256) for number, planned in enumerate(runs, start=1)
    }
    run(lambda: reproduce.main(sys.argv[1:]))
