"""Where things lie: the repository, what tests keep, and what may stand beside the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = Path(__file__).parent
FIXTURES = ROOT / "tests" / "fixtures"
TASKS = FIXTURES / "eval_tasks"
SHARED = ROOT.parent / "shared"
SHARED_POOL = SHARED / "data" / "pool.jsonl"
