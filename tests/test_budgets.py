import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_house_rules_hold() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "tools" / "check_budgets.py"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.stdout + checked.stderr == ""
    assert checked.returncode == 0
