"""The journal on a real Valkey: one atomic step, one clock, and what happens when the server forgets or is away."""

import asyncio
import itertools
import re
import signal
import socket
import sys
import time
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import MovedError

from kimi_async.budgets import Room
from kimi_async.errors import ConfigurationError, LedgerUnavailable
from kimi_async.ledger import open_ledger
from kimi_async.ledger import server as redis_server
from kimi_async.ledger.journal import Read
from kimi_async.ledger.redis import RedisJournal
from kimi_async.ledger.replica import Entry, Replica
from kimi_async.ledger.server import without_password
from kimi_async.ledger.shared import SharedLedger
from kimi_async.ledger.snapshot import dump
from kimi_async.limits import Cost, RateLimits

from .valkey import new_valkey, valkey  # noqa: F401 - fixtures

pytestmark = pytest.mark.real_time

ACCOUNTS = map("account {}".format, itertools.count())
LIMITS = RateLimits(concurrency=10, rpm=100, tpm=10_000)
PASSWORD = "open/?@:% sesame"
ESCAPED = "open%2F%3F%40%3A%25%20sesame"


@pytest.fixture
async def journals(valkey):  # noqa: F811
    """Makes journals of one account, each as another process would."""
    made, account = [], next(ACCOUNTS)

    def make(url=valkey.url):
        made.append(RedisJournal(url, account))
        return made[-1]

    yield make
    for journal in made:
        await journal.aclose()


@pytest.fixture
async def ledgers():
    """Makes ledgers, each as another process would."""
    made = []

    def make(url):
        made.append(SharedLedger(RedisJournal(url, "account"), when_away="fail"))
        made[-1].configure(LIMITS)
        return made[-1]

    yield make
    for ledger in made:
        await ledger.aclose()


async def enter(journal, *lines, last=0, process="p", room=None):
    """Append; lines may be given as names of operations."""
    written = [(line, {"tokens": 1} if line == "reserve" else {}) if isinstance(line, str) else line for line in lines]
    return await journal.append(last, process, written, room)


async def command(server, *words):
    """Ask a server something."""
    async with Redis.from_url(server.url) as client:
        return await client.execute_command(*words)


async def replicate(server, other):
    """Make one server another's replica, and return when it has all that the other has."""
    await command(server, "REPLICAOF", "127.0.0.1", other.port)
    async with asyncio.timeout(10):
        while (await command(server, "INFO", "replication"))["master_link_status"] != "up":  # noqa: ASYNC110 - a server says nothing of it
            await asyncio.sleep(0.01)


def operations(read):
    """What the entries that were read say."""
    return [entry.operation for entry in read.entries]


async def reserved(ledger, tokens=100):
    """A reservation that was sent; asked for until there is room and turn."""
    charge = await ledger.reserve(Cost(tokens, 0))
    ledger.sent(charge)
    await ledger.refresh()
    return charge


# -- the journal ------------------------------------------------------------------------------------------------


async def test_lines_are_read_back_in_order_with_their_detail(journals):
    """Names, umlauts and numbers survive; ids and stamps rise; later reads begin where the last one ended."""
    one, other = journals(), journals()
    details = [("reserve", {"tokens": 7}), ("refuse", {"text": "größer 大", "limit": None, "after": 0.25})]
    mine = await enter(one, *details)
    assert [(entry.operation, entry.detail, entry.process) for entry in mine.entries] == [(*d, "p") for d in details]
    assert mine.appended
    assert mine.snapshot is None
    assert not mine.lost
    assert await enter(other) == mine._replace(appended=False)
    assert mine.entries[0].id < mine.entries[1].id
    later = await enter(other, "end", last=mine.entries[-1].id, process="q")
    assert operations(later) == ["end"]
    assert later.entries[0].at > mine.entries[-1].at


async def test_appends_of_many_are_one_after_the_other_and_whole(journals):
    """Of 8 journals that enter 20 times 3 lines at once, all read the same, and no three lines are torn apart."""
    made = [journals() for _ in range(8)]

    async def write(number, journal):
        for n in range(20):
            await enter(journal, *[("wait", {"n": n, "part": part}) for part in range(3)], process=str(number))

    await asyncio.gather(*(write(*pair) for pair in enumerate(made)))
    reads = [await enter(journal) for journal in made]
    assert all(read.entries == reads[0].entries for read in reads)
    entries = reads[0].entries
    assert len(entries) == 8 * 20 * 3
    assert len({entry.id for entry in entries}) == len(entries)
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)
    for three in zip(*[iter(entries)] * 3, strict=True):
        assert len({(entry.process, entry.detail["n"]) for entry in three}) == 1
        assert [entry.detail["part"] for entry in three] == [0, 1, 2]


async def test_nothing_is_entered_after_what_left_less_room(journals):
    """(what another entered meanwhile, whether a reservation decided before it is entered)."""
    one, other = journals(), journals()
    last = (await enter(one, "wait")).entries[-1].id
    for lines, appended in [(["end"], True), (["end", "reserve", "sent"], False), (["sent", "cancel"], True)]:
        others = await enter(other, *lines, last=last, process="q")
        mine = await enter(one, "reserve", last=last, room=Room())
        assert mine.appended is appended
        assert operations(mine) == lines + ["reserve"] * appended
        last = max(mine.entries[-1].id, others.entries[-1].id)


async def test_of_many_who_want_the_last_room_one_gets_it(journals):
    """Ten decide on the same entry; one reservation is entered, and the others read it."""
    made = [journals() for _ in range(10)]
    last = (await enter(made[0], "join")).entries[-1].id
    calls = [enter(journal, "reserve", last=last, room=Room()) for journal in made]
    reads = await asyncio.gather(*calls)
    assert sum(read.appended for read in reads) == 1
    assert all(operations(read) == ["reserve"] for read in reads)


async def test_the_clock_is_the_servers_and_never_ahead(journals, valkey):  # noqa: F811
    """What is stamped after a look at the clock is not earlier, and it is less than a few milliseconds later."""
    journal = journals()
    assert journal.now() == 0.0
    await enter(journal)
    for _ in range(50):
        now = journal.now()
        (entry,) = (await enter(journals() if _ == 0 else journal, "alive", last=0, process=str(_))).entries[-1:]
        assert now <= entry.at
    assert entry.at <= journal.now() < entry.at + 0.5


async def test_the_clock_between_answers_is_slower_than_the_servers():
    """By more than any clock is wrong: half a second in a thousand."""
    journal = RedisJournal("redis://host", "account")
    journal._clock, journal._received = 5_000.0, time.monotonic() - 1_000
    assert 5_998.5 < journal.now() < 5_999.5


async def test_ids_rise_though_the_servers_clock_was_put_back(journals, valkey):  # noqa: F811
    """The journal's clock stands still until the server's has caught up."""
    journal = journals()
    ahead = (await enter(journal, "alive")).entries[-1].id + 3_600_000_000
    async with Redis.from_url(valkey.url) as server:
        await server.xadd(f"{journal._tag}:journal", {"entry": '["p", "alive", {}]'}, f"{ahead}-0")
        await server.hset(f"{journal._tag}:account", "newest", ahead)
    read = await enter(journal, "end", "end", last=ahead)
    assert [entry.id - ahead for entry in read.entries] == [1, 2]
    assert ahead / 1e6 - 0.1 < journal.now() < ahead / 1e6 + 1


async def test_a_reader_who_is_too_far_behind_begins_with_the_snapshot(journals):
    """The second state kept lets go of what came before the first; an older state changes nothing."""
    journal = journals()
    ids = [(await enter(journal, "alive", process=str(n))).entries[-1].id for n in range(6)]
    for place in (1, 3, 2):
        await journal.prune({"last": ids[place], "kept": place})
    fresh = await enter(journal)
    assert fresh.snapshot == {"last": ids[3], "kept": 3}
    assert [entry.id for entry in fresh.entries] == ids[4:]
    assert await enter(journal, last=ids[0]) == fresh
    late = await enter(journal, last=ids[1])
    assert late.snapshot is None
    assert [entry.id for entry in late.entries] == ids[2:]


async def test_who_is_too_far_behind_has_not_decided_on_what_there_is(journals):
    """What left less room is in the snapshot, which he had not read."""
    journal = journals()
    old = (await enter(journal, "wait")).entries[-1].id
    for _ in range(2):
        last = (await enter(journal, "reserve")).entries[-1].id
        await journal.prune({"last": last})
    read = await enter(journal, "reserve", last=old, room=Room())
    assert read.snapshot == {"last": last}
    assert not read.appended
    assert not read.lost


async def test_what_an_append_costs_does_not_grow_with_the_journal(journals, valkey):  # noqa: F811
    """The server looks at what is asked for alone: counted in its own commands."""
    journal = journals()

    async def cost(last):
        async with Redis.from_url(valkey.url, decode_responses=True) as server:
            await server.config_resetstat()
            read = await enter(journal, "reserve", last=last)
            stats = await server.info("commandstats")
        calls = {name: stats[f"cmdstat_{name}"]["calls"] for name in ("hmget", "xadd", "hset", "time", "xrange")}
        return operations(read), calls

    first = await cost((await enter(journal, "wait")).entries[-1].id)
    await enter(journal, *["alive"] * 5_000)
    assert (
        await cost((await enter(journal, "wait")).entries[-1].id) == first == (["reserve"], dict.fromkeys(first[1], 1))
    )


async def test_a_wake_reaches_whoever_listens_there_and_nobody_else(journals):
    """Two listen; one is woken."""
    one, two, other = journals(), journals(), journals()
    woken = {1: asyncio.Event(), 2: asyncio.Event()}
    address = await one.listen(woken[1].set)
    assert await two.listen(woken[2].set) != address
    other.wake(address)
    async with asyncio.timeout(2):
        await woken[1].wait()
    assert not woken[2].is_set()


async def test_accounts_keep_apart_and_lie_on_one_node_each(valkey):  # noqa: F811
    """All keys of an account have its name in braces, which is what a cluster goes by."""
    one, other = RedisJournal(valkey.url, "Ä one"), RedisJournal(valkey.url, "two}{")
    await enter(one, "reserve")
    assert (await enter(other)).entries == []
    async with Redis.from_url(valkey.url) as server:
        keys = [key.decode() for key in await server.keys("*Ä one*")]
    assert sorted(keys) == ["{kimi_async:Ä one}:account", "{kimi_async:Ä one}:journal"]
    await one.aclose()
    await other.aclose()


async def test_accounts_of_one_organization_learn_of_each_other(valkey):  # noqa: F811
    """However often they say so."""
    journals = [RedisJournal(valkey.url, account) for account in ("z", "a", "a")]
    assert [await journal.claim("org-1") for journal in journals] == [["z"], ["a", "z"], ["a", "z"]]
    assert await journals[0].claim("org-2") == ["z"]
    for journal in journals:
        await journal.aclose()


async def test_a_clusters_node_that_has_the_account_is_found(new_valkey):  # noqa: F811
    """Of two, asked in turn, only one has the keys; the other says who."""
    slots = [("0", "8191"), ("8192", "16383")]
    nodes = [new_valkey("--cluster-enabled", "yes") for _ in slots]
    for node, range_ in zip(nodes, slots, strict=True):
        await command(node, "CLUSTER", "ADDSLOTSRANGE", *range_)
    await command(nodes[0], "CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
    for node in nodes:
        async with asyncio.timeout(10):
            while "cluster_state:ok" not in str(await command(node, "CLUSTER", "INFO")):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.05)
    journals = [RedisJournal(node.tcp_url, "account") for node in nodes]
    reads = [await enter(journal, "alive", process=str(n)) for n, journal in enumerate(journals)]
    assert operations(reads[1]) == ["alive", "alive"]
    elsewhere = RedisJournal(nodes[1].tcp_url, "on another node")  # than the first, whose account is not on it
    assert [await journal.claim("org-1") for journal in (*journals, elsewhere)] == [
        ["account"],
        ["account"],
        ["account", "on another node"],
    ]
    through_sockets = [RedisJournal(node.url, "account") for node in nodes]
    outcomes = await asyncio.gather(*(enter(journal) for journal in through_sockets), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Read, ConfigurationError}
    assert "cluster" in str(next(outcome for outcome in outcomes if isinstance(outcome, ConfigurationError)))
    for journal in (*journals, elsewhere, *through_sockets):
        await journal.aclose()


# -- a server that forgets --------------------------------------------------------------------------------------


async def test_flushed_scripts_are_loaded_again(journals, valkey):  # noqa: F811
    """Nobody notices."""
    journal = journals()
    last = (await enter(journal, "reserve")).entries[-1].id
    async with Redis.from_url(valkey.url) as server:
        await server.script_flush()
    assert operations(await enter(journal, "sent", last=last)) == ["sent"]


@pytest.mark.parametrize("keys", [["journal", "account"], ["journal"], ["account"]])
async def test_a_journal_that_was_lost_says_so(journals, valkey, keys):  # noqa: F811
    """Whoever knows an entry that is no more enters nothing, and reads what there is now; half of it is nothing."""
    one, other = journals(), journals()
    last = (await enter(one, "reserve")).entries[-1].id
    async with Redis.from_url(valkey.url) as server:
        await server.delete(*(f"{one._tag}:{key}" for key in keys))
    assert await enter(one, "sent", last=last) == (None, [], False, True)
    fresh = await enter(other, "join", "reserve", process="q")
    assert fresh.appended
    assert fresh.entries[0].id > last
    again = await enter(one, "sent", last=last)
    assert again.lost
    assert not again.appended
    assert again.entries == fresh.entries
    assert (await enter(one, "recall", last=fresh.entries[-1].id)).appended


async def test_nothing_is_forgotten_with_a_server_that_forgets_everything(new_valkey, ledgers):  # noqa: F811
    """Two processes hold 300 and 200 tokens, one slot was given back; after the restart the books are the same."""
    server = new_valkey()
    one, two = ledgers(server.url), ledgers(server.url)
    charges = [await reserved(one) for _ in range(3)]
    others = [await reserved(two) for _ in range(2)]
    one.end(charges.pop(), answered=True)
    await one.refresh()
    await two.refresh()
    before = two.usage()
    assert (before.rpm.used, before.tpm.used, before.concurrency.used) == (5, 500, 4)
    server.stop()
    server.start()
    await asyncio.gather(one.refresh(), two.refresh())
    await one.refresh()
    for ledger in (one, two):
        assert ledger.usage() == before
    charges.append(await reserved(two))
    for charge, ledger in zip(charges + others, (one, one, two, two, two), strict=True):
        ledger.end(charge, answered=True)
    await one.refresh()
    await two.refresh()
    await one.refresh()
    after = one.usage()
    assert (after.rpm.used, after.tpm.used, after.concurrency.used) == (6, 600, 0)


async def test_idle_processes_bring_what_they_know_to_a_server_that_forgot(new_valkey, ledgers, monkeypatch):  # noqa: F811
    """One that does nothing notices that it was cut off; a newcomer is not let in before."""
    server = new_valkey()
    monkeypatch.setattr(redis_server, "SETTLING", 1.3)  # a server tells whole seconds, and the first may be a moment
    idle = ledgers(server.url)
    idle.end(await reserved(idle, 9_000), answered=True)
    await idle.refresh()
    server.stop()
    server.start()
    newcomer = ledgers(server.url)
    denial = await newcomer.reserve(Cost(2_000, 0))
    assert denial.reason == "tpm"
    assert newcomer.usage().tpm.used == 9_000


async def test_nothing_is_forgotten_with_a_server_that_forgets_the_last_second(new_valkey, ledgers):  # noqa: F811
    """It comes back with what it had saved; both bring what came later, and what both know is counted once."""
    server = new_valkey()
    one, two = ledgers(server.url), ledgers(server.url)
    saved = [await reserved(one), await reserved(two)]
    async with Redis.from_url(server.url) as client:
        await client.save()
    one.end(saved[0], answered=True)
    later = [await reserved(one), await reserved(two)]
    await one.refresh()
    server.stop()
    server.start()
    await asyncio.gather(one.refresh(), two.refresh())
    await one.refresh()
    for ledger in (one, two):
        usage = ledger.usage()
        assert (usage.rpm.used, usage.tpm.used, usage.tpd.used, usage.concurrency.used) == (4, 400, 400, 3)
    one.end(later[0], answered=True)
    await one.refresh()
    assert one.usage().concurrency.used == 2


async def test_a_server_that_persists_goes_on_where_it_was(new_valkey, ledgers):  # noqa: F811
    """No process has to say anything: the journal is as it was."""
    server = new_valkey(persisted=True)
    ledger = ledgers(server.url)
    charge = await reserved(ledger)
    last = ledger._session.replica.last
    server.stop()
    server.start()
    ledger.end(charge, answered=True)
    await ledger.refresh()
    journal = RedisJournal(server.url, "account")
    read = await enter(journal, last=last)
    assert operations(read) == ["end"]
    assert not read.lost
    await journal.aclose()


async def test_at_a_server_that_has_just_begun_nobody_reserves(new_valkey):  # noqa: F811
    """What happened is entered at once; a reservation is, after those who know more had the time to come."""
    server = new_valkey()
    journal = RedisJournal(server.url, "account")
    begin = time.monotonic()
    assert (await enter(journal, "reserve")).appended
    assert not (await enter(journal, "reserve", last=1, room=Room())).appended  # it reads first
    last = (await enter(journal)).entries[-1].id
    while not (await enter(journal, "reserve", last=last, room=Room())).appended:
        pass
    assert time.monotonic() - begin > 0.2
    await journal.aclose()


async def test_a_server_that_restarted_in_between_is_not_trusted_at_once(new_valkey, monkeypatch):  # noqa: F811
    """A reservation was decided on what the one before it knew; it is not tried again at that moment."""
    server = new_valkey(persisted=True)
    journal = RedisJournal(server.url, "account")
    last = (await enter(journal, "alive")).entries[-1].id
    await journal._server.settle()
    ask, restarts = redis_server._ask, [True]

    async def restart_once(connection, *commands):
        if "EVALSHA" in [command[0] for command in commands] and restarts and restarts.pop():
            server.stop()
            server.start()
        return await ask(connection, *commands)

    monkeypatch.setattr(redis_server, "_ask", restart_once)
    read = await enter(journal, "reserve", last=last, room=Room())
    assert (read.appended, read.lost, restarts) == (False, False, [])
    await journal._server.settle()
    assert (await enter(journal, "reserve", last=last, room=Room())).appended
    await journal.aclose()


async def test_a_node_that_the_keys_moved_to_is_not_trusted_at_once(new_valkey, monkeypatch):  # noqa: F811
    """However long it has been up: it may have been a replica that had not heard all."""
    one, two = new_valkey(), new_valkey()
    ask, moves = redis_server._ask, []

    async def ask_old_servers(connection, *commands):
        if moves and commands[-1][0] == "EVALSHA" and connection.port == one.port:
            raise MovedError(f"7 127.0.0.1:{two.port}")
        replies = await ask(connection, *commands)
        if commands[0][0] == "INFO":
            return [re.sub(rb"uptime_in_seconds:\d+", b"uptime_in_seconds:999", replies[0])]
        return replies

    monkeypatch.setattr(redis_server, "_ask", ask_old_servers)
    journal = RedisJournal(one.tcp_url, "account")
    assert (await enter(journal, "reserve", room=Room())).appended
    moves.append(True)
    begin = time.monotonic()
    read = await enter(journal, "reserve", room=Room())
    assert (read.appended, read.lost) == (False, False)
    while not (await enter(journal, "reserve", room=Room())).appended:
        pass
    assert time.monotonic() - begin > 0.25
    newcomer = RedisJournal(one.tcp_url, "account")  # is led there by the first it asks, which is no change
    last = (await enter(newcomer)).entries[-1].id
    assert (await enter(newcomer, "reserve", last=last, room=Room(9, 9))).appended
    await journal.aclose()
    await newcomer.aclose()


# -- a server that is away --------------------------------------------------------------------------------------


async def test_a_server_that_is_away_is_told_by_its_place(new_valkey, ledgers):  # noqa: F811
    """And when it is back the same ledger goes on."""
    server = new_valkey()
    ledger = ledgers(server.tcp_url)
    charge = await reserved(ledger)
    server.stop()
    with pytest.raises(LedgerUnavailable, match=f"redis://127.0.0.1:{server.port}: .*onnect"):
        await ledger.reserve(Cost(1, 0))
    ledger.end(charge, answered=True)
    server.start()
    await ledger.refresh()
    usage = ledger.usage()
    assert (usage.tpm.used, usage.concurrency.used) == (100, 0)


async def test_a_server_that_hangs_is_not_waited_for(new_valkey, monkeypatch):  # noqa: F811
    """Neither by a command nor by a first connection."""
    monkeypatch.setattr(redis_server, "ANSWER", 0.1)
    server = new_valkey()
    journal, other = RedisJournal(server.url, "account"), RedisJournal(server.url, "account")
    last = (await enter(journal, "alive")).entries[-1].id
    server.signal(signal.SIGSTOP)
    for one in (journal, other):
        with pytest.raises(LedgerUnavailable, match=r"does not answer within 0\.1 s"):
            await enter(one, "reserve", last=last)
    server.signal(signal.SIGCONT)
    assert (await enter(journal, "alive", last=last)).appended
    await journal.aclose()
    await other.aclose()


async def test_a_connection_that_was_cut_is_made_again(journals, valkey):  # noqa: F811
    """By the server, as it does with idle ones; whoever listened is woken, as he may have missed something."""
    journal, woken = journals(), asyncio.Event()
    address = await journal.listen(woken.set)
    last = (await enter(journal, "reserve")).entries[-1].id
    async with Redis.from_url(valkey.url) as server:
        for kind in ("normal", "pubsub"):
            await server.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    assert operations(await enter(journal, "sent", last=last)) == ["sent"]
    async with asyncio.timeout(2):
        await woken.wait()
        woken.clear()
        journal.wake(address)
        await woken.wait()


@pytest.mark.parametrize("node", ["hangs", "refuses"])
async def test_a_node_that_is_away_is_left(new_valkey, monkeypatch, node):  # noqa: F811
    """The next try asks where the URL leads to, and that is where one listens."""
    monkeypatch.setattr(redis_server, "ANSWER", 0.2)
    server, silent = new_valkey(), socket.create_server(("127.0.0.1", 0))
    journal, woken = RedisJournal(server.tcp_url, "account"), asyncio.Event()
    journal._server._node = {"port": silent.getsockname()[1]}
    if node == "refuses":
        silent.close()
    journal.wake(await journal.listen(woken.set))
    with pytest.raises(LedgerUnavailable):
        await enter(journal)
    journal.wake(await journal.listen(woken.set))
    async with asyncio.timeout(2):
        await woken.wait()
    assert (await enter(journal, "alive")).appended
    await journal.aclose()
    silent.close()


async def test_who_listens_goes_on_when_its_password_is_accepted_again(new_valkey):  # noqa: F811
    """An administrator may have changed it for a while."""
    server, woken = new_valkey("--requirepass", "sesame"), asyncio.Event()
    url = f"{server.url}?password=sesame"
    one, other = RedisJournal(url, "account"), RedisJournal(url, "account")
    address = await one.listen(woken.set)
    async with Redis.from_url(url) as client:
        await client.config_set("requirepass", "other")
        await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(0.2)
        assert not woken.is_set()
        await client.config_set("requirepass", "sesame")
    async with asyncio.timeout(2):
        await woken.wait()
        woken.clear()
        other.wake(address)
        await woken.wait()
    await one.aclose()
    await other.aclose()


async def test_a_server_that_was_deposed_is_left(new_valkey, ledgers):  # noqa: F811
    """It keeps its connections and refuses to write: who connects anew is where its name leads to now."""
    one, two = new_valkey(), new_valkey()
    name = one.directory / "n"
    name.symlink_to(one.path)
    ledger, other = ledgers(f"unix://{name}"), ledgers(two.url)
    await reserved(ledger)
    await replicate(two, one)
    await command(two, "REPLICAOF", "NO", "ONE")
    await replicate(one, two)
    name.unlink()
    name.symlink_to(two.path)
    with pytest.raises(LedgerUnavailable, match="read only replica"):
        await reserved(ledger)
    async with asyncio.timeout(5):
        await reserved(ledger)
        while not await command(two, "PUBSUB", "CHANNELS"):  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
    await other.refresh()
    assert other.usage().concurrency.used == 2


@pytest.mark.parametrize("arrived", [True, False])
async def test_lines_whose_answer_is_lost_are_entered_once(journals, monkeypatch, arrived):
    """The connection breaks before or after the server has done what it was asked."""
    journal, other = journals(), journals()
    last = (await enter(journal, "join")).entries[-1].id
    ask = redis_server._ask
    broken = []

    async def break_once(connection, *commands):
        if broken or "EVALSHA" not in [command[0] for command in commands]:
            return await ask(connection, *commands)
        broken.append(commands)
        if arrived:
            await ask(connection, *commands)
            await enter(other, "end", last=last, process="q")
        raise Disconnected("cut off")

    monkeypatch.setattr(redis_server, "_ask", break_once)
    read = await enter(journal, "reserve", "sent", last=last)
    assert broken
    assert read.appended
    assert operations(read) == ["reserve", "sent"]
    assert operations(await enter(journal)) == ["join", "reserve", "sent"] + ["end"] * arrived


# -- addresses --------------------------------------------------------------------------------------------------


async def test_a_password_opens_and_is_never_shown(new_valkey):  # noqa: F811
    """Neither by a ledger that works nor by an error and what led to it."""
    server = new_valkey("--requirepass", PASSWORD)
    place = server.tcp_url.removeprefix("redis://")
    ledger = await open_ledger(f"redis://:{ESCAPED}@{place}/0", account="a", when_away="fail")
    await ledger.refresh()
    assert repr(ledger) == f"<SharedLedger <RedisJournal redis://{place}/0, account 'a'>, 0 processes>"
    await ledger.aclose()
    for url in (server.tcp_url, server.url):
        wrong = url.replace("://", f"://:no{ESCAPED}@")
        for unwelcome, text in [(wrong, "WRONGPASS|invalid"), (url, "Auth|NOAUTH")]:
            with pytest.raises(ConfigurationError, match=f"{url}: .*({text})") as caught:
                await open_ledger(unwelcome)
            assert "sesame" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host", "redis://host"),
        ("redis://user:secret@host:6380/2?password=secret", "redis://host:6380/2"),
        ("rediss://:secret@[::1]:6380", "rediss://::1:6380"),
        ("unix:///run/valkey.sock?password=secret", "unix:///run/valkey.sock"),
        ("unix://user:secret@/run/valkey.sock", "unix:///run/valkey.sock"),
        ("redis://user:se/cret@host", "redis://…"),
        ("redis://user:se?cret@host", "redis://…"),
        ("redis://user:1?cret@host", "redis://…"),
        ("redis://user:se#cret@host", "redis://…"),
        ("redis://[secret@host", "redis://…"),
    ],
)
def test_what_is_shown_of_an_address(url, shown):
    """The place, and less where the password is not escaped."""
    assert without_password(url) == shown


@pytest.mark.parametrize("url", ["redis://user:se/cret@host", "redis://host:port", "redis://[secret@host"])
async def test_an_odd_address_is_refused(url):
    """Before anything is connected, and without saying what was in it."""
    with pytest.raises(ConfigurationError, match="no URL of a server") as caught:
        await open_ledger(url)
    assert "cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("option", ["protocol=3", "decode_responses=1", "socket_timeout=0.000001", "encoding=utf-16"])
async def test_options_of_an_address_do_not_change_what_we_rely_on(valkey, option):  # noqa: F811
    """They are those of other clients of the same server."""
    journal = RedisJournal(f"{valkey.url}?{option}", next(ACCOUNTS))
    assert operations(await enter(journal, "reserve", "sent")) == ["reserve", "sent"]
    await journal.aclose()


@pytest.mark.parametrize("option", ["cret=1", "health_check_interval=cret"])
async def test_an_odd_option_of_an_address_is_refused(option):
    """In our words, and without saying what was in it."""
    with pytest.raises(ConfigurationError, match="redis://host: ") as caught:
        await open_ledger(f"redis://host?{option}")
    assert "cret" not in "".join(traceback.format_exception(caught.value))


async def test_without_the_extra_the_remedy_is_named(monkeypatch):
    """The client's library is installed on demand."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "kimi_async.ledger.redis")
    with pytest.raises(ConfigurationError, match=r"pip install 'kimi_async\[redis\]'"):
        await open_ledger("redis://host")


async def test_a_kind_of_ledger_that_does_not_exist_shows_no_password():
    """The URL may be that of another database."""
    with pytest.raises(ConfigurationError, match="postgres://…") as caught:
        await open_ledger("postgres://user:secret@host/db")
    assert "secret" not in str(caught.value)


# -- recalling --------------------------------------------------------------------------------------------------

STEPS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["reserve", "sent", "end"])), max_size=30)

NEWCOMER = [("join", {"address": ""}), ("limits", {"rpm": 1000, "tpm": 100_000, "tpd": 10**6})]


class History:
    """Entries that two processes make, each of which takes its reservations through their life in order."""

    def __init__(self, clock):
        self._clock = clock
        self.held = {"a": [], "b": [], "c": []}

    def begin(self):
        yield from (self.entry("a", operation, **detail) for operation, detail in NEWCOMER)
        yield self.entry("b", "join", address="")

    def entry(self, process, operation, **detail):
        number = next(self._clock)
        return Entry(number, number / 100, process, operation, detail)

    def steps(self, steps):
        for process, operation in steps:
            held = self.held[process]
            if operation == "reserve":
                held.append([next(self._clock), "pending"])
                yield Entry(held[-1][0], held[-1][0] / 100, process, "reserve", {"tokens": 7})
            elif operation == "sent" and (waiting := [one for one in held if one[1] == "pending"]):
                waiting[0][1] = "sent"
                yield self.entry(process, "sent", charge=waiting[0][0])
            elif operation == "end" and (under_way := [one for one in held if one[1] == "sent"]):
                held.remove(under_way[0])
                yield self.entry(process, "end", charge=under_way[0][0], answered=True)


def replayed(entries):
    """The books after these."""
    replica = Replica()
    for entry in entries:
        replica.apply(entry)
    return replica


@settings(max_examples=200, deadline=None)
@given(kept=STEPS, lost=STEPS, new=STEPS, everything=st.booleans(), unread=st.booleans(), order=st.permutations("ab"))
def test_books_are_whole_again_when_all_have_said_what_they_know(*, kept, lost, new, everything, unread, order):
    """Whatever the server forgot, both bring it back, though a newcomer came first: all counts, and nothing twice."""
    clock = itertools.count(1)
    history = History(clock)
    before = [*history.begin(), *history.steps(kept)]
    forgotten = [*history.steps(lost)]
    newcomers = [history.entry("c", operation, **detail) for operation, detail in NEWCOMER]
    newcomers += history.steps([("c", operation) for _, operation in new])
    truth = replayed(before + forgotten + newcomers)
    left = replayed(newcomers if everything else before + newcomers)
    for name in order:  # each has read what came before the last entry of its own, or all
        own = [place for place, entry in enumerate(forgotten, start=1) if entry.process == name]
        read = forgotten[: max(own, default=0)] if unread else forgotten
        left.apply(history.entry(name, "recall", **dump(replayed(before + read))))
    now = next(clock) / 100
    assert left.books.usage(now).rpm == truth.books.usage(now).rpm
    assert left.books.usage(now).tpm == truth.books.usage(now).tpm
    assert left.books.usage(now).tpd.used >= truth.books.usage(now).tpd.used
    assert left.books.usage(now).concurrency == truth.books.usage(now).concurrency
    for name in "abc":
        assert set(left.processes[name].charges) == {number for number, _ in history.held[name]}


@pytest.mark.parametrize("everything", [True, False])
def test_what_was_learned_and_who_waits_is_known_again(everything):
    """A pause, the guard that it widened and the line; and nobody is taken for dead because the server was away."""
    history = History(itertools.count(1))
    before = [*history.begin(), *history.steps([("b", "reserve"), ("b", "sent")])]
    refusal = {"charge": history.held["b"][0][0], "budget": "rpm", "retry_after": 500.0, "pause": True}
    forgotten = [history.entry("b", "wait"), history.entry("b", "refuse", **refusal)]
    knowing = replayed(before + forgotten)
    left = replayed([] if everything else before)
    left.apply(Entry(10**5, 40.0, "a", "recall", dump(knowing)))
    assert left.books.paused_until == knowing.books.paused_until > 40
    assert left.books.guard == knowing.books.guard > replayed(before).books.guard
    assert left.first() == "b"
    assert not list(left.departed(41.0))
    assert [what for what, _ in left.departed(44.0)] == ["pass"]
