"""Published logs come out with the figures of an independent count; impossible and malformed ones are told."""

import pytest

from helpers.shared import SHARED, needs_shared
from holdfast.certify.smoothing.log import check_log, read_log
from holdfast.errors import DataError, SettingError

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
GOOD = [
    "0\t3\t3\t0.48\t1\t0:00:14.0",
    "1\t8\t8\t1.02\t1\t0:00:13.9",
    "2\t8\t-1\t0.0\t0\t0:00:01",
    "3\t1\t0\t1.91\t0\t0",
]

# Certified accuracies in percent at 0, 0.25, 0.5 ..., average certified radius, abstentions.
FIGURES = {
    "0.12": ((83.17, 59.77), 0.2758, 324),
    "0.25": ((76.65, 61.16, 42.25, 25.06), 0.4240, 795),
    "0.50": ((65.68, 54.91, 42.79, 32.45, 21.97, 14.12, 8.26), 0.5251, 1523),
    "1.00": ((47.15, 40.94, 33.77, 27.68, 22.13, 17.22, 13.28), 0.5105, 2955),
}


def write(path, *rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@needs_shared
@pytest.mark.parametrize("sigma", FIGURES)
def test_a_published_log_gives_the_counted_figures(sigma):
    log = read_log(SHARED / "smoothing" / f"cohen-resnet110-sigma{sigma}.tsv")
    accuracies, average, abstentions = FIGURES[sigma]
    assert len(log.idx) == 10_000
    assert tuple(round(100 * log.certified_accuracy(0.25 * i), 2) for i in range(len(accuracies))) == accuracies
    assert round(log.average_certified_radius, 4) == average
    assert log.abstentions == abstentions
    assert check_log(log, float(sigma)) == ()
    # With fewer samples than it was made with, or with less noise, its largest radii could not be.
    impossible = check_log(log, float(sigma), samples=10_000)
    assert impossible
    assert all("10000 samples" in fault.what for fault in impossible)
    assert check_log(log, 0.9 * float(sigma))


def test_a_log_that_can_be_has_no_faults(tmp_path):
    log = read_log(write(tmp_path / "log.tsv", *GOOD))
    assert check_log(log, 0.5) == ()  # 1.91 is 1.9058 rounded up
    assert log.certified_accuracy(0.5) == 0.25
    assert log.average_certified_radius == pytest.approx((0.48 + 1.02) / 4)
    assert log.abstentions == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("4\t1\t1\t1.92\t1\t0", "radius 1.92"),
        ("4\t1\t-1\t0.2\t0\t0", "abstention"),
        ("4\t1\t-1\t0.0\t1\t0", "marked correct"),
        ("4\t1\t1\t0.2\t0\t0", "marked wrong"),
        ("4\t1\t1\t-0.2\t1\t0", "negative"),
        ("3\t1\t1\t0.2\t1\t0", "second time"),
    ],
)
def test_what_cannot_be_is_told_with_its_line(tmp_path, row, says):
    faults = check_log(read_log(write(tmp_path / "log.tsv", *GOOD, row)), 0.5)
    assert [fault.line for fault in faults] == [6]
    assert says in faults[0].what


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("4\t1\t1\t0.2", "4 values for 6 columns"),
        ("4\t1\t1\tfar\t1\t0", "far"),
        ("4\t1.5\t1\t0.2\t1\t0", "1.5"),
        ("4\t1\t1\tnan\t1\t0", "finite"),
        ("4\t1\t1\t0.2\t2\t0", "0 or 1"),
        ("9223372036854775808\t1\t1\t0.2\t1\t0", "2**63"),
        ("4\t-1e3\t1\t0.2\t1\t0", "-1e3"),
    ],
)
def test_a_malformed_row_is_one_line_with_file_and_number(tmp_path, row, says):
    path = write(tmp_path / "log.tsv", *GOOD, row)
    with pytest.raises(DataError) as error:
        read_log(path)
    assert f"{path}:6" in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_log_is_refused(tmp_path):
    with pytest.raises(DataError, match="no column radius"):
        read_log(write(tmp_path / "other.tsv", header="idx\tlabel\tpredict"))
    with pytest.raises(DataError, match="no examples"):
        read_log(write(tmp_path / "empty.tsv"))
    with pytest.raises(DataError, match="no column idx"):
        read_log(write(tmp_path / "void.tsv", header=""))
    for path in (tmp_path / "absent.tsv", tmp_path):
        with pytest.raises(DataError, match=r"no such file|is a folder"):
            read_log(path)
    for settings in ({"samples": 0}, {"alpha": 0.0}, {"alpha": 1.0}):
        with pytest.raises(SettingError, match="samples, alpha"):
            check_log(read_log(write(tmp_path / "log.tsv", *GOOD)), 0.5, **settings)
