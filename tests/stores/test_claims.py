"""Claims: one holder at a time, the dead and the silent lose it, and who lost it is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from results import claims
from results.claims import Claim, Held, Lost, close, history, newest


def test_one_holds_at_a_time_and_the_history_stays(tmp_path: Path) -> None:
    with Claim.take(tmp_path, "claim", facts={"step": 4}) as first:
        first.require()
        with pytest.raises(Held, match=f"process {os.getpid()} on"):
            Claim.take(tmp_path, "claim")
        with Claim.take(tmp_path, "other"):
            pass
    with Claim.take(tmp_path, "claim") as second:
        second.require()
    assert [(h.number, h.ending) for h in history(tmp_path, "claim")] == [
        (1, "released"),
        (2, "released"),
    ]
    assert history(tmp_path, "claim")[0].facts == {"step": 4}


def test_the_claim_of_a_process_that_died_here_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from results.claims import Claim; "
        "Claim.take(Path(sys.argv[1]), 'claim'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    last = newest(tmp_path, "claim")
    assert last is not None
    assert last.dead
    assert last.ending == ""
    with Claim.take(tmp_path, "claim"):
        assert history(tmp_path, "claim")[0].ending == "expired"


@pytest.mark.parametrize(
    ("answer", "dead"), [(PermissionError, False), (None, False), (ProcessLookupError, True)]
)
def test_a_process_that_this_system_hides_from_others_is_not_dead(
    answer: type[OSError] | None, dead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        assert number == 0
        if answer is not None:
            raise answer

    with Claim.take(tmp_path, "claim") as claim:
        monkeypatch.setattr(claims, "_began", lambda pid: None)
        monkeypatch.setattr(os, "kill", kill)
        assert claim.holder.dead is dead


def elsewhere(claim: Claim, silent_s: float) -> None:
    """As if it were held on another machine, and last touched so long ago."""
    claim._over.set()
    claim._thread.join()
    holder = replace(claim.holder, system="another boot")
    holder.path.write_bytes(claims._text(holder))
    when = time.time() - silent_s
    os.utime(holder.path, (when, when))


def test_elsewhere_a_holder_lives_until_it_was_silent_for_a_lease(tmp_path: Path) -> None:
    claim = Claim.take(tmp_path, "claim", lease_s=60)
    elsewhere(claim, silent_s=20)
    with pytest.raises(Held):
        Claim.take(tmp_path, "claim")
    elsewhere(claim, silent_s=100)
    Claim.take(tmp_path, "claim").release()


def test_a_zombie_that_thaws_is_told_that_its_claim_is_lost(tmp_path: Path) -> None:
    zombie = Claim.take(tmp_path, "claim", lease_s=60)
    elsewhere(zombie, silent_s=100)
    with Claim.take(tmp_path, "claim") as heir:
        with pytest.raises(Lost, match="belongs to another process by now"):
            zombie.require()
        zombie.release("done")
        heir.require()
        assert history(tmp_path, "claim")[0].ending == "expired"


def test_a_heartbeat_keeps_a_claim(tmp_path: Path) -> None:
    with Claim.take(tmp_path, "claim", lease_s=0.6) as claim:
        before = claim.holder.path.stat().st_mtime_ns
        patience = time.monotonic() + 30
        while claim.holder.path.stat().st_mtime_ns == before and time.monotonic() < patience:
            time.sleep(0.01)
        assert claim.holder.path.stat().st_mtime_ns > before


def test_a_claim_just_being_written_or_damaged_ages_by_its_time(tmp_path: Path) -> None:
    path = tmp_path / "claim-000001"
    for content in (b"", b"{", b"null", b"[" * 10_000):
        path.write_bytes(content)
        os.utime(path)
        with pytest.raises(Held, match="another process"):
            Claim.take(tmp_path, "claim")
    os.utime(path, (0, 0))
    Claim.take(tmp_path, "claim").release()
    assert newest(tmp_path, "claim").number == 2


def test_a_folder_that_went_is_told_as_lost_and_needs_no_release(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    claim = Claim.take(folder, "claim")
    claim.holder.path.unlink()
    folder.rmdir()
    with pytest.raises(Lost):
        claim.require()
    claim.release()
    close(claim.holder, "done")
    assert newest(folder, "claim") is None
    with pytest.raises(FileNotFoundError):
        Claim.take(folder, "claim")
