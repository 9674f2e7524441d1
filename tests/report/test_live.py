"""``pullback watch`` as an application: who may read what, and what is told of runs that change."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pullback as pb
from pullback.cli.watch import command
from pullback.report.live import feed as feeds
from pullback.report.live.feed import Feed
from pullback.report.live.folders import Folders
from pullback.runs import RunWriter
from tests.charts_in import charts_text
from tests.command import HANGS
from tests.report.conftest import NASTY, SCRIPT

testclient = pytest.importorskip("starlette.testclient")

from pullback.report.live.app import COOKIE, MOST, make_app  # noqa: E402
from pullback.report.live.serve import TOO_MANY, address, bounded  # noqa: E402

HERE = "http://127.0.0.1:7474"
SECRET = "what no page may show"


def client(*given: Path, base_url: str = HERE, **options: Any) -> Any:
    app = make_app(Folders(given), **options)
    return testclient.TestClient(app, base_url=base_url, follow_redirects=False)


def write(folder: Path, losses: list[float], **more: Any) -> None:
    with RunWriter(folder, {"optimizer": {"class": "SGD"}}, **more) as writer:
        for step, loss in enumerate(losses):
            writer.append(step, "loss", {"loss": loss})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, one deep below it and named by an attacker, beside a file that is nobody's business."""
    folder = tmp_path_factory.mktemp("watched") / "runs"
    write(folder / "a", [3.0, 2.0, 1.0])
    write(folder / "deep" / NASTY[1].replace("/", " "), [1.0, float("nan")])
    (folder.parent / "secret.txt").write_text(SECRET)
    (folder / "notes.txt").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Any:
    return client(runs)


def test_the_list_and_its_runs(page: Any, runs: Path) -> None:
    """Names and verdicts of all, links that lead to their pages, markup in names as text."""
    answer = page.get("/")
    assert answer.status_code == 200
    links = re.findall(r'<a href="(/run/[^"]+)">([^<]*)</a>', answer.text)
    assert [name for _, name in links][:1] == ["a"]
    assert len(links) == 2
    assert "<img" not in answer.text
    assert "Diverges from step 1" in answer.text
    assert re.findall(r'<li class="(\w*)"', answer.text) == ["good", "critical"]
    for href, _ in links:
        shown = page.get(href)
        assert shown.status_code == 200
        assert 'id="loss"' in shown.text
        assert "<img" not in shown.text


def test_the_page_is_that_of_the_report(page: Any, runs: Path, tmp_path: Path) -> None:
    """From its title to the end of its main part: what ``write_report`` writes, word for word."""
    written = pb.write_report(runs / "a", tmp_path / "report.html").read_text()
    shown = page.get("/run/a").text
    parts = [re.search(r"<h1.*</main>", text, re.S) for text in (written, shown)]
    assert parts[0] is not None
    assert parts[1] is not None
    assert parts[0][0] == parts[1][0]
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', shown, re.S)
    assert found is not None
    assert found[1] == charts_text(written)


def test_scripts_come_from_here_and_nothing_else_does(page: Any) -> None:
    text = page.get("/run/a").text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]  # type: ignore[index]
    assert policy.split("; ")[:3] == ["default-src 'none'", "script-src 'self'", "connect-src 'self'"]
    sources = re.findall(r'<script src="(/script/[^"]+)"></script>', text)
    assert len(sources) == 3
    assert [page.get(each).headers["content-type"] for each in sources] == ["text/javascript; charset=utf-8"] * 3
    assert page.get("/script/other.js").status_code == 404
    assert set(re.findall(r'(?:src|href)="(\w+:[^"]*)"', text)) <= {"data:,"}


PATHS = (
    "/../secret.txt", "/run/../secret.txt", "/run/../../secret.txt", "/run/%2e%2e/secret.txt", "/run/..%2fsecret.txt",
    "/run/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/run//etc/passwd", "/run/%2fetc%2fpasswd", "/run/a/../../secret.txt",
    "/run/a/run.json", "/run/notes.txt", "/run/a/", "/run/a%00", "/run/..%5csecret.txt", "/run/", "/run", "/notes.txt",
    "/script/..%2f..%2fpage.js", "/run/%252e%252e/secret.txt", "//etc/passwd", "/run/deep",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_to_a_file(page: Any, runs: Path, path: str) -> None:
    for absolute in (path, path.replace("/run/", f"/run/{runs.parent}/", 1)):
        answer = page.get(testclient.httpx.URL(HERE).copy_with(raw_path=absolute.encode()))
        assert answer.status_code == 404
        assert SECRET not in answer.text
        assert "root:" not in answer.text


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    """A folder behind a link is not looked for, a file behind one not read; links within the folder are fine."""
    outside = tmp_path / "outside"
    write(outside, [7.25, 7.25])
    runs = tmp_path / "runs"
    write(runs / "own", [1.0])
    (runs / "linked").symlink_to(outside)
    write(runs / "borrowed", [1.0])
    (runs / "borrowed" / "records.jsonl").unlink()
    (runs / "borrowed" / "records.jsonl").symlink_to(outside / "records.jsonl")
    write(runs / "arrays", [1.0])
    (runs / "arrays" / "arrays").mkdir()
    (runs / "arrays" / "arrays" / "x").symlink_to(outside)
    write(runs / "inner", [2.0])
    (runs / "inner" / "copy.jsonl").symlink_to(runs / "own" / "records.jsonl")
    page = client(runs)
    text = page.get("/").text
    assert "linked" not in text
    assert text.count("links that lead out of it") == 2
    assert {name: page.get(f"/run/{name}").status_code for name in ("own", "inner")} == {"own": 200, "inner": 200}
    for name in ("borrowed", "arrays"):
        answer = page.get(f"/run/{name}")
        assert answer.status_code == 404
        assert "files of its own, got links that lead out of it" in answer.text
    assert page.get("/run/linked").status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_no_request_changes_anything(page: Any, runs: Path, method: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    for path in ("/", "/run/a", "/nowhere"):
        answer = page.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert page.head("/run/a").content == b""
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:7474", 200), ("127.0.0.1", "localhost", 200), ("127.0.0.1", "LOCALHOST:80", 200),
        ("127.0.0.1", "[::1]:7474", 200), ("127.0.0.1", "evil.example", 421), ("127.0.0.1", "192.168.0.7", 421),
        ("127.0.0.1", "127.0.0.1.evil.example", 421), ("127.0.0.1", "localhost.evil.example:7474", 421),
        ("127.0.0.1", "", 421), ("127.0.0.1", "[", 421), ("0.0.0.0", "192.168.0.7:7474", 200),
        ("0.0.0.0", "[fe80::1]:7474", 200), ("0.0.0.0", "evil.example", 421), ("box.example", "box.example:1", 200),
    ],
)  # fmt: skip
def test_the_host_header_names_this_server(runs: Path, bound: str, host: str, status: int) -> None:
    answer = client(runs, host=bound).get("/", headers={"host": host})
    assert answer.status_code == status
    assert (SCRIPT in answer.text) is False


def test_a_token_is_asked_for_elsewhere(runs: Path) -> None:
    """In the address once, then in a cookie that no script reads; of every answer, also of scripts and of nothing."""
    page = client(runs, host="0.0.0.0", token="right", base_url="http://192.168.0.7")
    for path in ("/", "/run/a", "/nowhere", "/?token=wrong", "/?token=", "/?token=right%00", "/?token=%E2%82%AC"):
        answer = page.get(path)
        assert answer.status_code == 403
        assert "right" not in answer.text
    answer = page.get("/run/a?token=right&since=x")
    assert (answer.status_code, answer.headers["location"]) == (303, "/run/a")
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    assert page.get("/").status_code == 200
    page.cookies.clear()
    assert page.get("/", headers={"cookie": f"{COOKIE}=righ"}).status_code == 403


def test_what_every_answer_says(page: Any) -> None:
    for path in ("/", "/run/a", "/nowhere"):
        headers = page.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "frame-ancestors 'none'"
        assert "server" not in headers


def test_too_many_at_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request waits within a page; with a bound of one the next is sent away, and afterwards it is served."""
    entered, leave = threading.Event(), threading.Event()

    def slow(self: Feed) -> Any:
        entered.set()
        leave.wait(60)
        return feeds.Shown("v", "<p>slow</p>")

    monkeypatch.setattr(Feed, "current", slow)
    with client(runs, most=1) as page:
        waiting = threading.Thread(target=page.get, args=("/",))
        waiting.start()
        assert entered.wait(60)
        answer = page.get("/")
        leave.set()
        waiting.join(HANGS)
        assert (answer.status_code, answer.text) == (503, "At most 1 requests at once.")
        assert page.get("/").status_code == 200


def test_connections_are_bounded_also_silent_ones(runs: Path) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(Folders([runs])), http=bounded(2), ws="none", loop="asyncio", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        place = bound.getsockname()
        silent = [socket.create_connection(place, 60) for _ in range(2)]
        silent[0].sendall(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert silent[0].recv(20).startswith(b"HTTP/1.1 404")  # both are there
        with socket.create_connection(place, 60) as third:
            assert third.recv(200) == TOO_MANY
        for each in silent:
            each.close()
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def since(page: Any, path: str) -> str:
    return re.search(r'data-version="([^"]*)"', page.get(path).text)[1]  # type: ignore[index]


def test_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, a record, a torn record, a run that goes on, one that is gone, and another in its place."""
    monkeypatch.setattr(feeds, "rest", lambda cost: 0.0)
    folder = tmp_path / "run"
    write(folder, [3.0, 2.0])
    page = client(folder)
    assert page.get("/").headers["location"] == "/run/run"
    version = since(page, "/run/run")

    def news() -> Any:
        return page.get(f"/run/run?since={version}")

    assert (news().status_code, news().content) == (204, b"")
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"step":2,"probe":"loss","values":{"loss":0.5},"time":9.0}\n{"step":3,"pro')
    answer = news()
    assert answer.status_code == 200
    assert "Damaged lines of the record that were skipped: run: 1" in answer.text
    assert re.search(r'data-version="([^"]*)"', answer.text)[1] != version  # type: ignore[index]
    version = since(page, "/run/run")
    with pytest.warns(UserWarning, match="1 damaged lines"):
        write(folder, [], resume=2)
    assert "Training was resumed: run from step 2" in news().text
    version = since(page, "/run/run")
    shutil.rmtree(folder)
    assert (news().status_code, news().text) == (410, feeds.GONE)
    assert 'id="loss"' in page.get("/run/run").text  # its last state
    write(folder, [9.0])
    answer = news()
    assert answer.status_code == 200
    assert "resumed" not in answer.text
    (folder / "run.json").write_text("{")
    assert (news().status_code, "damaged JSON" in news().text) == (409, True)


def test_the_list_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that come, change, cannot be read, and go; of many runs some are looked at later."""
    monkeypatch.setattr(feeds, "rest", lambda cost: 0.0)
    monkeypatch.setattr("pullback.report.live.pages.AGAIN", 0)
    page = client(tmp_path)
    assert "No run yet." in page.get("/").text
    version = since(page, "/")
    write(tmp_path / "one", [2.0, 1.0])
    answer = page.get(f"/?since={version}")
    assert answer.status_code == 200
    assert 'href="/run/one"' in answer.text
    monkeypatch.setattr("pullback.report.live.pages.LOOK", -1)
    for name in ("three", "two"):
        write(tmp_path / name, [2.0, 1.0])
    (tmp_path / "two" / "run.json").write_text("[]")
    assert page.get("/").text.count("not looked at yet") == 1
    assert "not looked at yet" not in (text := page.get("/").text)
    assert "cannot be read" in text
    shutil.rmtree(tmp_path / "one")
    assert "/run/one" not in page.get("/").text


def test_a_long_run_is_sent_as_a_screen_can_show_it(tmp_path: Path) -> None:
    """At most 2,000 points a line, and one wild step of thousands is among them, measured or not."""
    with RunWriter(tmp_path / "run", {}) as writer:
        for step in range(20_000):
            writer.course.add(step, {"loss": 77.5 if step == 12_345 else 1.0 + step % 7, "gradient_norm": 1.0})
            if step % 4 == 0:
                writer.append(step, "loss", {"loss": 88.5 if step == 8_000 else 2.0})
    text = client(tmp_path / "run").get("/run/run").text
    [figures] = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)
    lines = [trace for trace in json.loads(figures)["loss"]["data"] if len(trace["x"]) > 2]
    drawn = {(x, y) for trace in lines for x, y in zip(trace["x"], trace["y"], strict=True)}
    assert {(12_345, 77.5), (8_000, 88.5)} <= drawn
    assert {len(trace["x"]) <= 2000 for trace in lines} == {True}
    assert len(text) < 1_000_000


def told_by_hand(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in the one entry of a list."""
    now = [0.0]
    monkeypatch.setattr(feeds, "time", SimpleNamespace(monotonic=lambda: now[0], thread_time=lambda: now[0]))
    return now


def test_a_page_that_takes_long_is_made_at_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that took two seconds is kept for eight, but for the first."""
    now, state = told_by_hand(monkeypatch), [0]

    def make(version: str) -> str:
        now[0] += 2.0
        return f"page {state[0]}"

    feed = Feed(lambda: state[0], make)
    assert feed.current().html == "page 0"
    state[0] = 1
    assert feed.current().html == "page 1"
    state[0] = 2
    assert feed.resting == 8.0
    now[0] += 7.9
    assert feed.current().html == "page 1"
    now[0] += 0.2
    assert feed.current().html == "page 2"


@pytest.mark.parametrize("cost", [0.02, 0.1, 0.25, 0.3, 0.45, 0.53])
def test_a_page_follows_within_two_seconds(monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
    """Records come all the time, and a page asks when it was told to: 0.4 s are left to show the next one."""
    now = told_by_hand(monkeypatch)

    def make(version: str) -> str:
        now[0] += cost
        return "page"

    feed = Feed(lambda: round(now[0], 3), make)
    feed.current()
    looked, late, asked = now[0], [], 0
    while now[0] < 60:
        before, asked = now[0], asked + 1
        feed.current()
        if now[0] > before:
            late.append(now[0] - looked)  # of a record that came right after the last look
            looked = before
        now[0] += feed.resting
    assert max(late) <= feeds.LATEST + 1e-9
    assert asked == len(late) <= 60  # none in vain, and none sooner than a second after another
    assert cost * len(late) <= 30


def test_how_much_of_a_core_goes_into_pages() -> None:
    shares = [cost / (cost + feeds.rest(cost)) for cost in (0.01, 0.25, 0.3, 0.45, 0.6, 0.8, 0.81, 5.0)]
    assert shares == pytest.approx([0.01, 0.2, 0.23, 0.39, 0.5, 0.5, 0.2, 0.2], abs=0.005)


def test_nobody_who_has_a_page_waits_for_the_next() -> None:
    state, entered, leave = [0], threading.Event(), threading.Event()

    def make(version: str) -> str:
        if state[0]:
            entered.set()
            assert leave.wait(60)
        return f"page {state[0]}"

    feed = Feed(lambda: state[0], make)
    first = feed.current()
    state[0], feed._next = 1, 0.0
    making = threading.Thread(target=feed.current)
    making.start()
    assert entered.wait(60)
    assert feed.current() == first
    leave.set()
    making.join(HANGS)
    assert feed.current().html == "page 1"


def test_several_folders_and_equal_names(tmp_path: Path) -> None:
    for name in ("a/run", "b/run"):
        write(tmp_path / name, [1.0])
    given = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert list(Folders(given).runs()) == ["run", "run (2)"]
    assert list(Folders([tmp_path / "a", tmp_path / "b"]).runs()) == ["a/run", "b/run"]
    assert list(Folders([tmp_path]).runs()) == ["a/run", "b/run"]
    assert client(*given).get("/run/run%20(2)").status_code == 200


def test_what_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(pb.InputError, match=r"expected a run or a folder of runs, got no folder. Pass the folder"):
        command([tmp_path / "none"])
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(pb.InputError, match="an address to bind"):
        command([tmp_path], port=taken.getsockname()[1])
    with pytest.raises(pb.InputError, match="an address to bind"):
        command([tmp_path], host="no.such.host.invalid")
    with pytest.raises(pb.InputError, match=r"a `--port` from 0 to 65535, got 99999. Pass another"):
        command([tmp_path], port=99999)


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pullback.report.live.serve", None)
    with pytest.raises(ModuleNotFoundError):  # a file of our own: nothing that an extra brings
        command([tmp_path])
    monkeypatch.delitem(__import__("sys").modules, "pullback.report.live.serve")
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(
        pb.InputError, match=r"the package uvicorn, got no such package. pip install 'pullback\[watch\]'"
    ):
        command([tmp_path])


def test_addresses() -> None:
    assert address("127.0.0.1", 7474, None) == "http://127.0.0.1:7474/"
    assert address("::1", 80, None) == "http://[::1]:80/"
    assert address("0.0.0.0", 80, "t") == f"http://{socket.gethostname()}:80/?token=t"
    assert address("box", 80, "t") == "http://box:80/?token=t"
    assert MOST == 32


@pytest.fixture(autouse=True)
def _no_page_is_being_made() -> Iterator[None]:
    yield
    assert not feeds._making.locked()
