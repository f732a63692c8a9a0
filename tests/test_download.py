"""Archives that prepare_data.py reads and downloads: what it takes, what it refuses."""

import tarfile
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_prepare_data import (
    REAL_ARCHIVE,
    add,
    archive,
    encode,
    manifest,
    picture,
    prepare,
    refuse,
    snapshot,
)


def test_archive_classes(tmp_path):
    tar = archive(tmp_path / "indoor.tar")
    with tarfile.open(tar, "a") as more:
        add(more, "Images/kitchen/1.jpg", encode(picture(99)))
    prepare("--archive", tar, cwd=tmp_path)
    assert {row["source"] for row in manifest(tmp_path / "data" / "bedroom")} == {
        f"Images/bedroom/bedroom_{i}.jpg" for i in range(4)}
    prepare("--archive", tar, "--class", "all", cwd=tmp_path)
    assert {row["file"].partition("/")[2] for row in manifest(tmp_path / "data" / "all")} == {
        *(f"bedroom_{i}.jpg" for i in range(4)), *(f"kitchen_{i}.jpg" for i in range(3)),
        "kitchen_1-2.jpg"}
    refuse("--archive", tar, "--class", "kitchn", "--out", tmp_path / "c",
           says="class 'kitchn'; it has: bedroom (4), kitchen (4)")
    assert not (tmp_path / "c").exists()


def test_archives_of_either_kind_give_the_same_files(script, tmp_path):
    """Zip files as Macs pack them, tar files as they are or packed; what is damaged is skipped."""
    data = {f"Images/{name}/{i}.jpg": encode(picture(i)) for i in range(4)
            for name in ("bedroom", "attic")}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        for name, contents in data.items():
            pack.writestr(name, contents)
            pack.writestr(f"__MACOSX/{name.replace('/', '/._')}", b"not a photo")
        pack.writestr("../out.jpg", b"")
    for kind in ("", "gz"):
        with tarfile.open(tmp_path / f"a.tar{kind}", f"w:{kind}") as tar:
            for name, contents in data.items():
                add(tar, name, contents)
    found = []
    for name in ("a.zip", "a.tar", "a.targz"):
        out = tmp_path / f"out {name}"
        done = script("prepare_data.py", "--archive", tmp_path / name, "--out", out)
        assert len(done.stderr.splitlines()) == (name == "a.zip")  # of the path outside
        found.append(snapshot(out))
    assert found[0] == found[1] == found[2] and len(found[0]) == 5
    damaged = bytearray((tmp_path / "a.zip").read_bytes())
    damaged[damaged.index(b"Images/bedroom/2.jpg") + 300] ^= 1
    (tmp_path / "a.zip").write_bytes(damaged)
    done = script("prepare_data.py", "--archive", tmp_path / "a.zip", "--class", "all", "--out",
                  tmp_path / "all")
    assert len(manifest(tmp_path / "all")) == 7
    assert "skipped Images/bedroom/2.jpg: it fails to decode (" in done.stderr
    listing = damaged.index(b"PK\1\2")
    claims = bytearray(damaged)
    claims[listing + 24 : listing + 28] = (2**31).to_bytes(4, "little")  # of the first photo
    (tmp_path / "a.zip").write_bytes(claims)
    done = script("prepare_data.py", "--archive", tmp_path / "a.zip", "--out", tmp_path / "large")
    assert "skipped Images/bedroom/0.jpg: a link, a device, a path outside or over 1 GB" in (
        done.stderr) and len(manifest(tmp_path / "large")) == 2
    for where, says in ((listing, "is not a whole tar or zip archive"),
                        (listing + 8, "is encrypted: unpack it")):
        data = bytearray(damaged)
        data[where] ^= 1
        (tmp_path / "a.zip").write_bytes(data)
        refuse("--archive", tmp_path / "a.zip", says=says)


def test_hostile_members_are_named_and_never_followed(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(encode(picture(77)))
    data, kitchen = encode(picture(1)), "Images/kitchen/kitchen_0.jpg"
    hostile = {  # name: (data, kind, link)
        "Images/bedroom/../../../escape.jpg": (data,),
        "../bedroom/escape2.jpg": (data,),
        f"{tmp_path}/bedroom/absolute.jpg": (data,),
        "Images/bedroom/soft.jpg": (b"", tarfile.SYMTYPE, f"{tmp_path}/secret.jpg"),
        "Images/bedroom/hard.jpg": (b"", tarfile.LNKTYPE, kitchen),
        "Images/bedroom/null.jpg": (b"", tarfile.CHRTYPE),
        "Images/bedroom/pipe.jpg": (b"", tarfile.FIFOTYPE),
    }
    with tarfile.open(archive(tmp_path / "a.tar"), "a") as tar:
        for name, member in hostile.items():
            add(tar, name, *member)
        add(tar, "Images/bedroom/._mac.jpg", b"junk")
        add(tar, "Images/bedroom/odd\n\x1bname\udcff.jpg", data)
    before = set(tmp_path.rglob("*"))
    result = prepare("--archive", tmp_path / "a.tar", "--out", tmp_path / "out")
    for name, line in zip(hostile, result.stderr.splitlines(), strict=True):
        assert f"warning: skipped {name}:" in line
    assert sorted(r["source"].rpartition("/")[2] for r in manifest(tmp_path / "out")) == [
        *(f"bedroom_{i}.jpg" for i in range(4)), "odd__name_.jpg"]
    assert all(p.is_relative_to(tmp_path / "out") for p in set(tmp_path.rglob("*")) - before)


def test_damaged_archive_is_refused_before_anything_is_written(tmp_path):
    whole = archive(tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        start = tar.getmembers()[3].offset
    zipped = archive(tmp_path / "a.tar.gz", mode="w:gz").read_bytes()
    for where, data in {
        "in a photo": whole[: start + 700], "in a header": whole[: start + 100],
        "between members": whole[:start], "in the first header": whole[:300],
        "broken header": whole[: start + 3] + b"???" + whole[start + 6 :],
        "gzip": zipped[: len(zipped) * 2 // 3],
    }.items():
        (tmp_path / where).write_bytes(data)
        refuse("--archive", tmp_path / where, "--out", tmp_path / "new/out",
               says="is not a whole tar or zip archive")
        assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not REAL_ARCHIVE.exists(), reason=f"needs {REAL_ARCHIVE}")
def test_real_bedrooms(tmp_path):
    args = "--archive", REAL_ARCHIVE, "--class", "bedroom", "--out", tmp_path / "bedroom"
    prepare(*args)
    sizes = Counter(row["split"] for row in manifest(tmp_path / "bedroom"))
    assert sorted(sizes.values()) == [267, 268]
    assert "nothing changed" in prepare(*args).stdout


class Server(ThreadingHTTPServer):
    """Serves a small archive; drops the first `drops` answers half-way; resumes if `ranges`."""

    def __init__(self, folder, drops=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.starts = archive(folder / "served.tar").read_bytes(), []
        self.drops, self.ranges, self.says_length = drops, True, True
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/files/indoor.tar"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, total = self.server, len(self.server.data)
        start = int(self.headers["Range"][6:-1])
        server.starts.append(start)
        if start >= total or "indoor" not in self.path:
            self.send_error(416 if start >= total else 404)
            return
        start = start if server.ranges else 0
        body = server.data[start:]
        self.send_response(206 if server.ranges else 200)
        self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if server.drops > 0 else body)
        server.drops -= 1


def test_download_resumes_after_drops(tmp_path):
    server, path = Server(tmp_path, drops=2), tmp_path / "data" / "indoor.tar"
    prepare("--download", server.url, cwd=tmp_path)
    half = len(server.data) // 2
    assert server.starts == [0, half, half + (len(server.data) - half) // 2]
    assert path.read_bytes() == server.data
    assert len(manifest(tmp_path / "data" / "bedroom")) == 4
    assert "nothing changed" in prepare("--download", server.url, cwd=tmp_path).stdout
    assert len(server.starts) == 3, "a whole archive is not fetched again"
    path.unlink()
    server.drops, server.ranges = 100, False
    refuse("--download", server.url, cwd=tmp_path, says="running again resumes")
    assert path.with_name("indoor.tar.part").stat().st_size == half
    server.drops, server.ranges = 0, True
    prepare("--download", server.url, cwd=tmp_path)
    assert server.starts[-1] == half and path.read_bytes() == server.data
    path.unlink()
    server.says_length = False
    prepare("--download", server.url, cwd=tmp_path)
    assert path.read_bytes() == server.data


def test_download_errors_name_the_url(tmp_path):
    server, data = Server(tmp_path), tmp_path / "data"
    data.mkdir()
    (data / "indoor.tar.part").write_bytes(server.data + b"more")
    (data / "indoorCVPR_09.tar").write_bytes(b"short")
    for url, says in ((server.url, "indoor.tar.part and run again"),
                      (server.url.replace("indoor", "x"), "x.tar answers 404"),
                      ("http://127.0.0.1:9/x.tar", "http://127.0.0.1:9/x.tar: "),
                      ("file:///etc/passwd", "not an http(s) URL")):
        refuse("--download", url, cwd=tmp_path, says=says)
    refuse("--download", cwd=tmp_path, says="is not 2,592,010,240 bytes long")
    assert {p.name for p in data.iterdir()} == {"indoor.tar.part", "indoorCVPR_09.tar"}
