from pathlib import Path
def is_running(folder: Path) -> bool:
    return False
