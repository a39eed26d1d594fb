"""The scripts that record noise, draw gates from it and run real ones: what they decide, and what they keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpusq_deploy.benchmarks.pairs import TURN, log_ratio
from gpusq_deploy.benchmarks.peers import gate_noise, gate_real, gate_simulation as simulation
from gpusq_deploy.benchmarks.peers.page import put_part


def state(*, cpu: bool, spread: float = 0.003) -> simulation.State:
    """20 pairs on busy cores: wall time is mostly waiting, CPU time isn't."""
    rng = np.random.default_rng(0)
    shape = (20, 2, 30 * TURN)
    calm = 5 * np.exp(spread * rng.standard_normal(shape))
    waiting = calm + 20 * rng.exponential(size=shape)
    return simulation.State("busy", waiting, calm if cpu else None, np.full(20, 2.0), np.full(20, 3.0))


def test_ours_decides_by_cpu_time_where_it_was_recorded() -> None:
    rng = np.random.default_rng(1)
    for effect, verdict in ((0.0, "holds"), (0.05, "regressed"), (0.33, "regressed")):
        outcome = simulation.ours(simulation.draw(state(cpu=True), effect, rng))
        assert outcome.verdict == verdict
        assert outcome.seconds > 11 * 2
    assert simulation.ours(simulation.draw(state(cpu=False), 0.05, rng)).verdict == "inconclusive"


def test_a_drawn_pair_says_what_the_gates_own_ratio_says() -> None:
    gate = simulation.draw(state(cpu=False), 0.33, np.random.default_rng(2))
    (base, head), *_ = gate.wall
    assert simulation.log_ratio_of(gate.wall[0]) == pytest.approx(log_ratio(base.tolist(), head.tolist()))


def test_the_table_has_a_row_for_each_rule_and_state() -> None:
    rows = [row for effect in simulation.EFFECTS for row in simulation.simulate(state(cpu=True), effect, 5, seed=0)]
    lines = simulation.table(rows).splitlines()
    assert len(lines) == 2 + len(simulation.RULES) + 2
    assert lines[-1] == "5 gates of each kind."
    assert lines[2].startswith(
        "| busy (3.0 to 3.0) | gpusq-bench --interleave | 0.0% | 100.0% | 0.0% | 100.0% | 100.0% |"
    )


def test_a_recorded_state_replaces_the_one_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "noise.json"
    pair: dict[str, Any] = {"load": 1.0, "seconds": 5.0}
    pair |= dict.fromkeys(("base_ms", "head_ms", "base_cpu_ms", "head_cpu_ms"), [1.0] * 2 * TURN)
    gate_noise.merge(path, "both cores busy", [pair], 2.0)
    gate_noise.merge(path, "idle", [pair, pair], 0.0)
    gate_noise.merge(path, "both cores busy", [pair, pair, pair], 2.0)
    found = json.loads(path.read_text())["states"]
    assert [(entry["name"], len(entry["pairs"])) for entry in found] == [("idle", 2), ("both cores busy", 3)]
    assert [entry.wall.shape[0] for entry in simulation.read_states(path)] == [2, 3]


def test_a_busy_machine_isnt_called_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 3.0, 3.0))
    monkeypatch.setattr(gate_noise, "PATIENCE", -1.0)
    with pytest.raises(SystemExit, match=r"isn't idle: its load average is 3\.00"), gate_noise.prepared("idle"):
        pass
    with pytest.raises(SystemExit, match=r"wasn't idle: other work held 0\.20 cores"):
        gate_noise.require_idle("idle", 0.2)
    gate_noise.require_idle("both cores busy", 9.0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/stat")
def test_work_of_others_is_counted() -> None:
    try:
        watch = gate_noise.CoreWatch()
    except SystemExit as error:
        pytest.skip(str(error))
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            ticks = os.sysconf("SC_CLK_TCK") // 2
            while other.poll() is None and int(Path(f"/proc/{other.pid}/stat").read_text().split()[13]) < ticks:
                time.sleep(0.05)
            seconds = watch.other_seconds()
        finally:
            other.kill()
    assert seconds >= 0.4


def test_real_gates_have_a_row_each(tmp_path: Path) -> None:
    gate = {"head": "8 blocks", "verdict": "regressed", "pairs": 11, "seconds": 40.2, "ratio": 1.29, "lower": 1.2}
    gate |= {"upper": None, "wall_ratio": 1.12, "loads": [2.5, 4.0]}
    found = gate_real.merge(tmp_path / "real.json", "both cores busy", [gate], 2.0)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gate_real.BEGIN}\nold\n{gate_real.END}\nafter\n")
    put_part(page, gate_real.BEGIN, gate_real.END, gate_real.table(found))
    row = "| both cores busy (2.5 to 4.0) | 8 blocks | regressed | 11 | 40 s | +29.0% | +20.0% to - | +12.0% |"
    assert row in page.read_text().splitlines()
    assert "old" not in page.read_text()
    with pytest.raises(SystemExit, match="has no part between"):
        put_part(page, "<!-- another -->", gate_real.END, "text")
    assert row in page.read_text().splitlines()
