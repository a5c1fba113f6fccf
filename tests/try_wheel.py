"""Installs the wheel of dist/ for this interpreter into a fresh environment, and runs README's example there.

    python tests/try_wheel.py

The environment has nothing but what the wheel asks for, and no compiler can be found in it.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Return the exit status."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    abi = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    wheels = sorted((ROOT / "dist").glob(f"pagecache_engine-*-{tag}-{tag}{abi}-*linux*.whl"), key=os.path.getmtime)
    if not wheels:
        print(f"dist/ has no wheel for {tag}{abi}: make wheel", file=sys.stderr)
        return 1
    text = (ROOT / "README.md").read_text()
    example = re.search(r"## Use it directly\s+```python\n(.*?)```", text, re.DOTALL)[1]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
        python = place / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheels[-1]], check=True)
        (place / "data.bin").write_bytes(os.urandom(1 << 20))
        script = "import shutil\nassert not (shutil.which('cc') or shutil.which('gcc'))\n" + example
        environment = {"PATH": str(python.parent), "HOME": directory}
        subprocess.run([python, "-P", "-W", "error", "-c", script], cwd=place, env=environment, check=True)
    print(f"{wheels[-1].name}: README's example of direct use runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
