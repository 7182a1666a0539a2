"""The servers that other tests lean on: that they behave as the real ones do, and that their faults are those asked for."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import google_crc32c
import numpy as np
import pytest
from google.api_core.exceptions import NotFound, PreconditionFailed, RetryError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import ChunkedEncodingError, ConnectionError

from servers.fault_proxy import (
    Corrupt,
    Fault,
    FaultProxy,
    LoseResponse,
    Request,
    ResetBody,
    ResetRequest,
    Slow,
    Status,
    Truncate,
    WrongChecksum,
    random_schedule,
)
from servers.gcs import GcsServer
from servers.kaggle import KaggleServer
from servers.relay import Relay

CHUNK = 256 * 1024  # the smallest chunk of a resumable upload
CONTENT = np.random.default_rng(0).bytes(600_000)
NUMBERS = itertools.count()
QUICK_RETRY = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.05).with_timeout(20)

Result = TypeVar("Result")


@pytest.fixture(scope="module")
def gcs() -> Iterator[GcsServer]:
    with GcsServer() as server, pytest.MonkeyPatch.context() as patch:
        # Else a thread of the client's asks for the bucket some time after its first use, and meets a fault meant for others.
        patch.setenv("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        yield server


@pytest.fixture
def bucket(gcs: GcsServer) -> storage.Bucket:
    """A bucket of this test's own, reached directly."""
    return gcs.create_bucket(f"bucket-{next(NUMBERS)}")


def once(fault: Fault, method: str, times: int = 1) -> Callable[[Request], Fault | None]:
    """A schedule: the first requests of one method meet the fault, the others none."""
    faults = itertools.chain(itertools.repeat(fault, times), itertools.repeat(None))
    return lambda request: next(faults) if request.method == method else None


def through(proxy: FaultProxy, gcs: GcsServer, bucket: storage.Bucket) -> storage.Bucket:
    """The same bucket, reached through the proxy."""
    return gcs.client(proxy.url).bucket(bucket.name)


def upload_in_chunks(blob: storage.Blob, content: bytes, **options: Any) -> None:
    """A resumable upload, which the client makes of more than 8 MiB, or if it is not told the size."""
    blob.chunk_size = CHUNK
    blob.upload_from_file(io.BytesIO(content), **options)


def send(url: str, method: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Sends one bare request; header names are written with _ for -."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=10)
    try:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"{place.path}?{place.query}", body, fields)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


# Google Cloud Storage


def test_an_object_comes_back_whole_and_in_ranges(bucket: storage.Bucket) -> None:
    bucket.blob("a/b").upload_from_string(CONTENT, checksum="crc32c")
    blob = bucket.blob("a/b")
    assert blob.download_as_bytes(checksum="crc32c") == CONTENT
    assert blob.download_as_bytes(start=1000, end=1999) == CONTENT[1000:2000]
    assert [each.name for each in bucket.list_blobs(prefix="a/")] == ["a/b"]
    with pytest.raises(NotFound):
        bucket.blob("a/c").download_as_bytes()


def test_a_resumable_upload_arrives_with_its_metadata(bucket: storage.Bucket) -> None:
    blob = bucket.blob("x y/ü")
    blob.metadata = {"step": "3"}
    upload_in_chunks(blob, CONTENT, content_type="application/x-test", checksum="crc32c")
    stored = bucket.get_blob("x y/ü")
    assert stored is not None
    assert (stored.size, stored.content_type, stored.metadata) == (600_000, "application/x-test", {"step": "3"})
    assert stored.download_as_bytes() == CONTENT


@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK, 2 * CHUNK + 1])
def test_a_resumable_upload_may_have_any_size(bucket: storage.Bucket, size: int) -> None:
    upload_in_chunks(bucket.blob("x"), CONTENT[:size], checksum="crc32c")
    assert bucket.blob("x").download_as_bytes() == CONTENT[:size]


@pytest.mark.parametrize("upload", [storage.Blob.upload_from_string, upload_in_chunks])
def test_an_upload_for_another_generation_is_refused(bucket: storage.Bucket, upload: Callable[..., None]) -> None:
    blob = bucket.blob("x")
    upload(blob, b"one", if_generation_match=0)
    first = blob.generation
    with pytest.raises(PreconditionFailed):
        upload(blob, b"two", if_generation_match=0)
    assert blob.download_as_bytes() == b"one"
    upload(blob, b"two", if_generation_match=first)
    assert blob.download_as_bytes() == b"two"
    with pytest.raises(PreconditionFailed):
        upload(blob, b"three", if_generation_match=first)


def test_a_media_upload_for_another_generation_is_refused(gcs: GcsServer, bucket: storage.Bucket) -> None:
    url = f"{gcs.url}/upload/storage/v1/b/{bucket.name}/o?uploadType=media&name=x&ifGenerationMatch=0"
    assert send(url, "POST", b"one", Content_Type="text/plain")[0] == 200
    assert send(url, "POST", b"two", Content_Type="text/plain")[0] == 412
    stored = bucket.get_blob("x")
    assert stored is not None
    assert (stored.content_type, stored.download_as_bytes()) == ("text/plain", b"one")


def test_an_upload_session_is_as_google_documents_it(gcs: GcsServer, bucket: storage.Bucket) -> None:
    start = f"{gcs.url}/upload/storage/v1/b/{bucket.name}/o?uploadType=resumable&name=x"
    session = send(start, "POST", b"{}")[1]["location"]

    def put(span: str, body: bytes = b"") -> tuple[int, str | None]:
        status, headers, _ = send(session, "PUT", body, Content_Range=f"bytes {span}")
        return status, headers.get("range")

    assert put("*/*") == (308, None)
    assert put(f"0-{CHUNK - 1}/600000", CONTENT[:CHUNK]) == (308, f"bytes=0-{CHUNK - 1}")
    assert put(f"0-{CHUNK - 1}/600000", CONTENT[:CHUNK]) == (308, f"bytes=0-{CHUNK - 1}")
    assert put("*/*") == (308, f"bytes=0-{CHUNK - 1}")
    assert put("300000-599999/600000", CONTENT[300_000:]) == (400, None)
    assert bucket.get_blob("x") is None
    assert put("100000-599999/600000", CONTENT[100_000:]) == (200, None)
    assert put("100000-599999/600000", CONTENT[100_000:]) == (200, None)
    assert put("*/*") == (200, None)
    assert bucket.blob("x").download_as_bytes() == CONTENT
    assert send(session, "DELETE")[0] == 499
    assert put("*/*") == (404, None)
    assert send(start.replace(bucket.name, "nobucket"), "POST", b"{}")[0] == 404


def test_the_bare_binary_ends_a_session_that_is_asked_for_its_status(gcs: GcsServer, bucket: storage.Bucket) -> None:
    """The reason for the front: if this fails with a later binary, the front may go."""
    start = f"{gcs.emulator_url}/upload/storage/v1/b/{bucket.name}/o?uploadType=resumable&name=x"
    session = send(start, "POST", b"{}")[1]["location"]
    send(session, "PUT", CONTENT[:CHUNK], Content_Range=f"bytes 0-{CHUNK - 1}/600000")
    assert send(session, "PUT", Content_Range="bytes */*")[0] == 200
    stored = bucket.get_blob("x")
    assert stored is not None
    assert stored.size == CHUNK


# Faults


def test_without_faults_everything_passes_through_the_proxy(gcs: GcsServer, bucket: storage.Bucket) -> None:
    with FaultProxy(gcs.url) as proxy:
        blob = through(proxy, gcs, bucket).blob("x")
        upload_in_chunks(blob, CONTENT, checksum="crc32c")
        assert blob.download_as_bytes(start=5, end=9) == CONTENT[5:10]
        assert [(request.method, request.range, fault, status) for request, fault, status in proxy.log] == [
            ("POST", None, None, 200),
            ("PUT", f"bytes 0-{CHUNK - 1}/*", None, 308),
            ("PUT", f"bytes {CHUNK}-{2 * CHUNK - 1}/*", None, 308),
            ("PUT", f"bytes {2 * CHUNK}-599999/600000", None, 200),
            ("GET", "bytes=5-9", None, 206),
        ]
        assert [request.number for request, _, _ in proxy.log] == [0, 1, 2, 3, 4]
        assert proxy.log[0][0].path == f"/upload/storage/v1/b/{bucket.name}/o"


def test_a_redirect_by_the_server_behind_leads_back_through_the_proxy() -> None:
    with KaggleServer({"x": b"1"}, key="k", username="u") as kaggle, FaultProxy(kaggle.url) as proxy:
        asked = {"ownerSlug": "google", "modelSlug": "paligemma", "framework": "MODEL_FRAMEWORK_JAX"}
        asked |= {"instanceSlug": "paligemma-3b-pt-224", "versionNumber": 1, "path": "x"}
        url = f"{proxy.url}/api/v1/models.ModelApiService/DownloadModelInstanceVersion"
        status, headers, _ = send(url, "POST", json.dumps(asked).encode(), Authorization="Basic dTpr")
        assert (status, urlsplit(headers["location"]).netloc) == (302, urlsplit(proxy.url).netloc)
        assert send(headers["location"], "GET")[2] == b"1"


def test_statuses_are_answered_without_the_server_behind() -> None:
    with FaultProxy("http://127.0.0.1:1", once(Status(429, retry_after=7), "GET")) as proxy:
        status, headers, body = send(proxy.url, "GET")
        assert (status, headers["retry-after"], json.loads(body)) == (429, "7", {"error": {"code": 429}})
        with pytest.raises(http.client.RemoteDisconnected):
            send(proxy.url, "GET")
        assert [status for _, _, status in proxy.log] == [429, 0]


def test_a_client_outlives_a_storm_of_503s(gcs: GcsServer, bucket: storage.Bucket) -> None:
    with FaultProxy(gcs.url, once(Status(503), "POST", times=4)) as proxy:
        through(proxy, gcs, bucket).blob("x").upload_from_string(b"one", retry=QUICK_RETRY)
        assert [status for _, _, status in proxy.log] == [503, 503, 503, 503, 200]
    assert bucket.blob("x").download_as_bytes() == b"one"


@pytest.mark.parametrize("fault", [ResetBody(100_000), Truncate(100_000)])
def test_a_download_that_breaks_off_goes_on_where_it_broke(gcs: GcsServer, bucket: storage.Bucket, fault: Fault) -> None:
    bucket.blob("x").upload_from_string(CONTENT)
    with FaultProxy(gcs.url, once(fault, "GET")) as proxy:
        target = through(proxy, gcs, bucket).blob("x")
        assert target.download_as_bytes(retry=QUICK_RETRY) == CONTENT
        (_, first, _), (again, none, status) = proxy.log
        assert (first, none, status) == (fault, None, 206)
        assert again.range is not None
        # The client counts whole blocks of 8 KiB, so it may ask again for less than one block that it had.
        assert 100_000 - 8192 < int(again.range.removeprefix("bytes=").removesuffix("-")) <= 100_000


def test_the_body_before_a_fault_arrives_to_the_byte(gcs: GcsServer, bucket: storage.Bucket) -> None:
    bucket.blob("x").upload_from_string(CONTENT)
    url = f"/storage/v1/b/{bucket.name}/o/x?alt=media"
    for fault, error in ((ResetBody(54_321), ConnectionResetError), (Truncate(54_321), http.client.IncompleteRead)):
        with FaultProxy(gcs.url, once(fault, "GET")) as proxy:
            connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc)
            connection.request("GET", url)
            response = connection.getresponse()
            assert response.headers["Content-Length"] == "600000"
            assert response.read(54_321) == CONTENT[:54_321]
            with pytest.raises(error):
                response.read()
            connection.close()


@pytest.mark.parametrize("fault", [ResetBody(10**9), Truncate(10**9), LoseResponse(), ResetRequest(0)])
def test_a_client_that_does_not_try_again_sees_the_fault(gcs: GcsServer, bucket: storage.Bucket, fault: Fault) -> None:
    bucket.blob("x").upload_from_string(b"one")
    with (
        FaultProxy(gcs.url, lambda request: fault) as proxy,
        pytest.raises((ConnectionError, ChunkedEncodingError)),
    ):
        through(proxy, gcs, bucket).blob("x").download_as_bytes(retry=None)


def test_a_chunk_that_is_reset_midway_is_sent_again(gcs: GcsServer, bucket: storage.Bucket) -> None:
    with FaultProxy(gcs.url, once(ResetRequest(1000), "PUT", times=2)) as proxy:
        upload_in_chunks(through(proxy, gcs, bucket).blob("x"), CONTENT, retry=QUICK_RETRY)
        assert [status for _, _, status in proxy.log] == [200, 0, 0, 308, 308, 200]
    assert bucket.blob("x").download_as_bytes() == CONTENT


def test_chunks_whose_answers_get_lost_are_stored_once(gcs: GcsServer, bucket: storage.Bucket) -> None:
    def lose_each_first(request: Request) -> Fault | None:
        return LoseResponse() if request.method == "PUT" and request.number % 2 else None

    with FaultProxy(gcs.url, lose_each_first) as proxy:
        upload_in_chunks(through(proxy, gcs, bucket).blob("x"), CONTENT, checksum="crc32c", retry=QUICK_RETRY)
        assert [status for _, _, status in proxy.log] == [200, 308, 308, 308, 308, 200, 200]
    assert bucket.blob("x").download_as_bytes() == CONTENT


def test_a_conditional_upload_whose_answer_got_lost_fails_although_it_was_done(gcs: GcsServer, bucket: storage.Bucket) -> None:
    with FaultProxy(gcs.url, once(LoseResponse(), "POST")) as proxy:
        blob = through(proxy, gcs, bucket).blob("x")
        with pytest.raises(PreconditionFailed):
            blob.upload_from_string(b"one", if_generation_match=0, retry=QUICK_RETRY)
    assert bucket.blob("x").download_as_bytes() == b"one"


def test_one_byte_of_a_body_is_corrupted(gcs: GcsServer, bucket: storage.Bucket) -> None:
    bucket.blob("x").upload_from_string(CONTENT)
    with FaultProxy(gcs.url, lambda request: Corrupt(70_000)) as proxy:
        blob = through(proxy, gcs, bucket).blob("x")
        with pytest.raises(DataCorruption):
            blob.download_as_bytes(checksum="crc32c")
        damaged = blob.download_as_bytes(checksum=None)
    assert [place for place in range(600_000) if damaged[place] != CONTENT[place]] == [70_000]


def test_the_client_checks_no_part_of_an_object_and_no_download_that_broke_off(gcs: GcsServer, bucket: storage.Bucket) -> None:
    """Why the storage layer checks what it downloads itself."""
    bucket.blob("x").upload_from_string(CONTENT)
    faults = {0: Corrupt(0), 1: ResetBody(100_000), 2: Corrupt(0)}
    with FaultProxy(gcs.url, lambda request: faults[request.number]) as proxy:
        blob = through(proxy, gcs, bucket).blob("x")
        assert blob.download_as_bytes(start=0, checksum="crc32c") != CONTENT
        assert blob.download_as_bytes(checksum="crc32c", retry=QUICK_RETRY) != CONTENT


def test_checksums_are_wrong_in_the_header_and_in_metadata(gcs: GcsServer, bucket: storage.Bucket) -> None:
    bucket.blob("x").upload_from_string(CONTENT)
    right = bucket.get_blob("x")
    with FaultProxy(gcs.url, lambda request: WrongChecksum()) as proxy:
        faulty = through(proxy, gcs, bucket)
        wrong = faulty.get_blob("x")
        assert right is not None
        assert wrong is not None
        assert wrong.crc32c != right.crc32c
        assert wrong.md5_hash != right.md5_hash
        assert (wrong.size, wrong.generation) == (right.size, right.generation)
        for checksum in ("crc32c", "md5"):
            with pytest.raises(DataCorruption):
                faulty.blob("x").download_as_bytes(checksum=checksum)
        assert faulty.blob("x").download_as_bytes(checksum=None) == CONTENT


def test_a_slow_answer_takes_its_time(gcs: GcsServer, bucket: storage.Bucket) -> None:
    bucket.blob("x").upload_from_string(CONTENT)
    with FaultProxy(gcs.url, lambda request: Slow(0.4)) as proxy:
        start = time.monotonic()
        assert through(proxy, gcs, bucket).blob("x").download_as_bytes() == CONTENT
        assert time.monotonic() - start >= 0.4


def test_a_proxy_that_closes_does_not_wait_for_a_slow_answer(gcs: GcsServer) -> None:
    start = time.monotonic()
    with FaultProxy(gcs.url, lambda request: Slow(600)) as proxy:
        connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc)
        connection.request("GET", "/storage/v1/b")
        while not proxy.log:
            time.sleep(0.001)
    connection.close()
    assert time.monotonic() - start < 300


# Schedules of faults


def requests_of(count: int, attempts: int) -> list[Request]:
    return [
        Request(number, "GET", f"/storage/v1/b/bucket/o/{number % count}", "alt=media", None)
        for number in range(count * attempts)
    ]


def test_a_seed_draws_the_same_faults_in_any_order_of_requests() -> None:
    requests = requests_of(count=50, attempts=3)
    forwards, backwards, other = (random_schedule(seed) for seed in (0, 0, 2))
    drawn = [forwards(request) for request in requests]
    reordered = sorted(requests, key=lambda request: request.path)
    assert sorted(map(repr, drawn)) == sorted(repr(backwards(request)) for request in reordered)
    assert drawn != [other(request) for request in requests]


def test_a_share_of_requests_meets_faults_of_every_kind() -> None:
    schedule = random_schedule(0)
    drawn = [schedule(request) for request in requests_of(count=2000, attempts=1)]
    assert 0.25 < sum(fault is not None for fault in drawn) / 2000 < 0.35
    kinds = {Status, ResetBody, ResetRequest, Truncate, Corrupt, WrongChecksum, Slow, LoseResponse}
    assert {type(fault) for fault in drawn if fault is not None} == kinds


def test_no_request_meets_more_than_three_faults() -> None:
    schedule = random_schedule(0, share=1)
    request = Request(0, "PUT", "/upload", "upload_id=a", "bytes 0-9/10")
    again = Request(1, "PUT", "/upload", "upload_id=b", "bytes 0-9/10")
    assert [schedule(each) is not None for each in (request, request, again, again, request)] == [True] * 3 + [False] * 2


def test_one_seed_in_ten_is_permanent() -> None:
    schedules = [random_schedule(seed) for seed in range(300)]
    permanent = [schedule for schedule in schedules if schedule.permanent]
    assert 20 <= len(permanent) <= 40
    assert {schedule(request) for schedule in permanent[:3] for request in requests_of(20, 1)} == {Status(503)}


@pytest.mark.parametrize("seed", range(8))
def test_a_persistent_client_succeeds_under_any_schedule_that_lets_it(
    gcs: GcsServer, bucket: storage.Bucket, seed: int
) -> None:
    schedule = random_schedule(seed)
    if schedule.permanent:
        return
    with FaultProxy(gcs.url, schedule) as proxy:
        faulty = through(proxy, gcs, bucket)
        for upload in (storage.Blob.upload_from_string, upload_in_chunks):
            persistently(lambda upload=upload: upload(faulty.blob("x"), CONTENT, retry=QUICK_RETRY))
            assert persistently(lambda: download_checked(faulty.blob("x"))) == CONTENT
    assert bucket.blob("x").download_as_bytes() == CONTENT


def test_a_client_gives_up_under_a_permanent_schedule(gcs: GcsServer, bucket: storage.Bucket) -> None:
    schedule = next(schedule for schedule in map(random_schedule, range(100)) if schedule.permanent)
    with FaultProxy(gcs.url, schedule) as proxy, pytest.raises(RetryError, match="503"):
        through(proxy, gcs, bucket).blob("x").upload_from_string(b"one", retry=QUICK_RETRY.with_timeout(0.2))


def download_checked(blob: storage.Blob) -> bytes:
    content = blob.download_as_bytes(retry=QUICK_RETRY)
    if google_crc32c.value(content) != google_crc32c.value(CONTENT):
        raise DataCorruption(None)
    return content


def persistently(attempt: Callable[[], Result]) -> Result:
    """Tries again what the client's own retries do not cover: a damaged answer.

    After a damaged answer to an upload the client deletes the object, and finds nothing to delete if that answer gets lost.
    """
    for _ in range(20):
        try:
            return attempt()
        except (DataCorruption, NotFound):
            pass
    raise AssertionError("damaged 20 times")


def test_a_relay_delays_requests_limits_bandwidth_and_counts_bytes(gcs: GcsServer, bucket: storage.Bucket) -> None:
    bucket.blob("x").upload_from_string(CONTENT)
    with Relay(gcs.url, round_trip=0.1, bandwidth=3e6) as relay:
        blob, started = gcs.client(relay.url).bucket(bucket.name).blob("x"), time.monotonic()
        assert blob.download_as_bytes() == CONTENT
        assert time.monotonic() - started >= 0.1 + (len(CONTENT) - CHUNK) / 3e6  # the last piece arrives before its wait
        read = relay.carried()
        assert len(CONTENT) < read.down < len(CONTENT) + 10_000
        assert 0 < read.up < 10_000
        blob.upload_from_string(CONTENT)
        written = relay.carried() - read
        assert len(CONTENT) < written.up < len(CONTENT) + 10_000
        assert 0 < written.down < 10_000
