"""States of several hosts in one checkpoint, and the rows that each host reads."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import zlib

from protlm_jax.training import hosts

TWO_PROCESSES = """
import json, sys, zlib
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
import numpy as np
from protlm_jax import partitioning
from protlm_jax.training import hosts
sharding = partitioning.batch_sharding(partitioning.make_mesh({"data": 2, "fsdp": 2}), 8)
rows = partitioning.local_rows(sharding, 8)
whole = np.arange(24).reshape(8, 3)
batch = partitioning.put_rows({"ids": whole[rows]}, sharding, 8)["ids"]
assert batch.shape == (8, 3)
assert all((shard.data == whole[shard.index]).all() for shard in batch.addressable_shards)
longer = [jax.process_index(), 2] * (1 + 9 * jax.process_index())
mine = zlib.compress(json.dumps({"shard": longer}).encode())
joined = hosts.state_of_all(mine)
assert hosts.state_of_this(joined) == mine
same = zlib.compress(b'{"batch": 3}')
assert hosts.state_of_all(same) == same
print(rows, joined.hex(), sep="; ")
"""


def state(**fields: object) -> bytes:
    return zlib.compress(json.dumps(fields).encode())


def test_each_host_finds_its_own_and_one_state_serves_any_number() -> None:
    states = [state(shard=[i, 3]) for i in range(3)]
    joined = hosts.join(states)
    assert [hosts.pick(joined, i) for i in range(3)] == states
    assert hosts.pick(joined, 4) == states[1]
    one = state(batch=7)
    assert hosts.join([one] * 4) == one
    assert all(hosts.pick(one, host) == one for host in range(5))
    assert hosts.state_of_all(one) == hosts.state_of_this(one) == one


def test_two_processes_agree_and_have_their_own_rows() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    commands = [[sys.executable, "-c", TWO_PROCESSES, str(i), port] for i in range(2)]
    running = [subprocess.Popen(c, stdout=-1, stderr=-1, text=True) for c in commands]
    found = []
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found.append(out.splitlines()[-1].split("; "))
    (first, state), (second, other) = found
    assert state == other and (first, second) == ("[0, 1, 2, 3]", "[4, 5, 6, 7]")
