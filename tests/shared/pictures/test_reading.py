"""DecodedPicture files of every kind, with the values that they must come out with."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageSequence, PngImagePlugin

from shared.pictures.inputs import IMAGE_SUFFIXES
from shared.pictures.levels import scaled_by_range, value_range
from shared.pictures.png import PngWriter, write_strips
from shared.pictures.profiles import deep_to_srgb, srgb_profile, to_srgb
from shared.pictures.reading import DecodedPicture, UnreadableImage, read_picture

HEIGHT, WIDTH = 24, 40


def scene() -> np.ndarray:
    """Returns [HEIGHT, WIDTH, 3] uint8 of smooth colours that differ in every corner."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    channels = [120 + 90 * np.sin(x / 5), 110 + 80 * np.cos(y / 7), 100 + 70 * np.sin((x + y) / 9)]
    return np.clip(np.stack(channels, axis=2), 0, 255).astype(np.uint8)


def read_saved(path: Path, image: Image.Image, **options) -> DecodedPicture:
    image.save(path, **options)
    return read_picture(path)


# --- ranges


@pytest.mark.parametrize(
    ("top", "extra"),
    [(1.0, None), (1.0, 1.004), (1.0, 60.0), (1.0, -0.2), (255.0, None), (255.0, 256.5), (65535.0, 70000.0)],
)
def test_a_float_file_is_scaled_by_its_range_and_not_by_one_pixel(tmp_path, top, extra):
    ramp = np.linspace(0.02, 0.98, 4000).reshape(50, 80) * top
    stored = ramp.copy()
    if extra is not None:
        stored[3, 3] = extra
    picture = read_saved(tmp_path / "float.tif", Image.fromarray(stored.astype(np.float32)))
    error = np.abs(picture.levels[..., 0] / 65535 - ramp / top)
    error[3, 3] = 0
    assert error.max() < 2e-5  # half a level of 16 bits, and float32's own rounding
    assert (picture.bits, picture.grey) == (16, True)
    assert picture.notes == (() if top == 1.0 else (f"values read as 0 to {top:.0f}",))


def test_highlights_of_a_linear_float_picture_are_cut_and_leave_the_rest_alone():
    values = np.full((100, 100), 0.25, np.float32)
    values[:10] = 3.0  # a tenth of it is sky
    assert value_range(values) == 1.0
    levels, note = scaled_by_range(values)
    assert (levels[50, 50], levels[0, 0], note) == (16384, 65535, "")


def test_stars_on_a_black_sky_in_whole_numbers_are_no_unit_floats():
    values = np.zeros((100, 100), np.float32)
    values[5, 5] = 200.0
    assert value_range(values) == 255.0


@pytest.mark.parametrize(("top", "dtype"), [(255, np.int32), (65535, np.int32), (2**31 - 1, np.int32)])
def test_32_bit_integers_are_scaled_by_the_range_that_holds_nearly_all(tmp_path, top, dtype):
    ramp = np.linspace(0.1, 0.9, 4000).reshape(50, 80) * top
    stored = ramp.round().astype(dtype)
    stored[0, 0] = min(top + 1, 2**31 - 1)
    picture = read_saved(tmp_path / "int.tif", Image.fromarray(stored))
    expected = ramp / (top if top < 2**31 - 1 else 2**32 - 1)
    error = np.abs(picture.levels[..., 0] / 65535 - expected)
    assert error[1:].max() < 0.6 / top + 2e-5


def test_16_bit_greys_keep_their_levels_whatever_they_fill(tmp_path):
    dark = np.linspace(0, 1023, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    for name in ("grey.png", "grey.tif"):
        picture = read_saved(tmp_path / name, Image.fromarray(dark))
        assert np.array_equal(picture.levels[..., 1], dark)
        assert (picture.bits, picture.grey) == (16, True)


def test_16_bit_colour_of_other_files_is_kept_and_what_is_not_is_said(tmp_path):
    deep = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint16).reshape(HEIGHT, WIDTH, 3) * 22
    assert cv2.imwrite(str(tmp_path / "a.ppm"), deep[..., ::-1])
    (tmp_path / "b.ppm").write_bytes(f"P6 {WIDTH} {HEIGHT} 1023\n".encode() + (deep >> 6).astype(">u2").tobytes())
    smooth = np.tile(scene(), (4, 4, 1)).astype(np.uint16) * 257  # OpenCV writes no smaller JPEG 2000
    assert cv2.imwrite(str(tmp_path / "a.jp2"), smooth[..., ::-1], [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    for name, stored, tolerance in (("a.ppm", deep, 0), ("b.ppm", deep, 64), ("a.jp2", smooth, 40)):  # b at 10 bits
        picture = read_picture(tmp_path / name)
        assert (picture.bits, picture.notes) == (16, ())
        assert np.abs(picture.levels.astype(int) - stored).max() <= tolerance
    cmyk = np.full((HEIGHT, WIDTH, 4), 257 * 51, np.uint16)
    tifffile.imwrite(tmp_path / "cmyk.tif", cmyk, photometric="separated")
    picture = read_picture(tmp_path / "cmyk.tif")
    assert (picture.bits, picture.notes) == (8, ("read at 8 bits", "CMYK converted to sRGB without a profile"))
    assert (np.abs(picture.levels.astype(int) - 163) <= 1).all()  # 255 · .8 · .8
    tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(deep, 2, 0), photometric="rgb", planarconfig="separate")
    with pytest.raises(UnreadableImage, match="separate planes, which is not read: save it interleaved"):
        read_picture(tmp_path / "planes.tif")


@pytest.mark.parametrize(
    ("name", "write", "notes"),
    [
        ("deep.avif", lambda path, deep: _write_avif(path, deep, bits=10), ("read at 8 bits",)),
        ("deeper.avif", lambda path, deep: _write_avif(path, deep, bits=12), ("read at 8 bits",)),
        ("plain.avif", lambda path, deep: _write_avif(path, deep, bits=8), ()),
        ("deep.sgi", lambda path, deep: _write_sgi(path, deep, bits=16), ("read at 8 bits",)),
        ("plain.sgi", lambda path, deep: _write_sgi(path, deep, bits=8), ()),
    ],
)
def test_a_picture_that_pillow_cuts_to_8_bits_says_so(tmp_path, name, write, notes):
    write(tmp_path / name, scene().astype(np.uint16) * 257)
    picture = read_picture(tmp_path / name)
    assert (picture.bits, picture.notes) == (8, notes)
    assert np.abs(picture.levels.astype(int) - scene()).mean() < 3  # AVIF is lossy


def _write_avif(path: Path, deep: np.ndarray, *, bits: int) -> None:
    """Writes levels [H, W, 3] uint16, of which so many bits are kept."""
    kept = (deep >> (16 - bits))[..., ::-1]
    kept = kept.astype(np.uint8) if bits == 8 else kept
    assert cv2.imwrite(str(path), kept, [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 95])


def _write_sgi(path: Path, deep: np.ndarray, *, bits: int) -> None:
    """Writes levels [H, W, 3] uint16 as an SGI picture without compression, bottom row first, channel by channel."""
    height, width, channels = deep.shape
    header = struct.pack(">hBBHHHHII", 474, 0, bits // 8, 3, width, height, channels, 0, 2**bits - 1).ljust(512, b"\0")
    samples = np.moveaxis(deep >> (16 - bits), 2, 0)[:, ::-1].astype(">u2" if bits == 16 else np.uint8)
    path.write_bytes(header + samples.tobytes())


def test_16_bit_alpha_that_is_multiplied_in_is_taken_out(tmp_path):
    straight = np.full((4, 6, 3), (60000, 30000, 10000), np.uint16)
    alpha = np.tile(np.array([0, 100, 20000, 32768, 50000, 65535], np.uint16), (4, 1))
    stored = (straight * (alpha[..., None] / 65535)).round().astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", np.dstack([stored, alpha]), photometric="rgb", extrasamples=["assocalpha"], planarconfig=1
    )
    picture = read_picture(tmp_path / "a.tif")
    assert np.array_equal(picture.alpha, alpha)
    assert np.abs(picture.levels[:, 2:].astype(int) - straight[:, 2:]).max() <= 2
    assert np.abs(picture.levels[:, 1].astype(int) - straight[:, 1]).max() <= 330  # half a level of 100


def test_greys_from_white_to_black_and_unsigned_32_bits(tmp_path):
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    tifffile.imwrite(tmp_path / "white.tif", ramp, photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "white.tif").levels[..., 0], 65535 - ramp)
    tifffile.imwrite(tmp_path / "u32.tif", ramp.astype(np.uint32) * 65537)
    assert np.array_equal(read_picture(tmp_path / "u32.tif").levels[..., 0], ramp)


def test_values_that_are_not_finite_are_refused(tmp_path):
    values = np.full((4, 4), np.nan, np.float32)
    with pytest.raises(UnreadableImage, match=r"bad\.tif: holds values that are not finite"):
        read_saved(tmp_path / "bad.tif", Image.fromarray(values))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_keeps_every_level_and_its_alpha(tmp_path, suffix, channels):
    levels = np.arange(HEIGHT * WIDTH * channels, dtype=np.uint16).reshape(HEIGHT, WIDTH, channels) * 17
    assert cv2.imwrite(str(tmp_path / f"deep.{suffix}"), levels)  # blue first
    picture = read_picture(tmp_path / f"deep.{suffix}")
    assert np.array_equal(picture.levels, levels[..., 2::-1])
    if channels == 4:
        assert np.array_equal(picture.alpha, levels[..., 3])
    else:
        assert picture.alpha is None


def test_float_colour_that_pillow_cannot_open(tmp_path):
    values = scene().astype(np.float32) / 255
    assert cv2.imwrite(str(tmp_path / "float.tif"), np.ascontiguousarray(values[..., ::-1]))
    picture = read_picture(tmp_path / "float.tif")
    assert np.abs(picture.levels / 65535 - values).max() < 1e-5


# --- colour


def gamma_profile(gamma: float, *, grey: bool = False) -> bytes:
    """Returns the profile of sRGB's primaries, or of grey, with a plain gamma."""
    made = srgb_profile()
    (count,) = struct.unpack(">I", made[128:132])
    entries = [made[132 + 12 * i : 144 + 12 * i] for i in range(count)]
    found = {entry[:4]: struct.unpack(">II", entry[4:]) for entry in entries}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    kept = (b"wtpt", b"cprt") if grey else (b"wtpt", b"cprt", b"rXYZ", b"gXYZ", b"bXYZ")
    body = {name: made[found[name][0] : sum(found[name])] for name in kept}
    body |= dict.fromkeys((b"kTRC",) if grey else (b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, at = struct.pack(">I", len(body)), b"", 128 + 4 + 12 * len(body)
    for name, content in body.items():
        table += name + struct.pack(">II", at + len(data), len(content))
        data += content + b"\0" * (-len(content) % 4)
    size = struct.pack(">I", 128 + len(table) + len(data))
    return size + made[4:16] + (b"GRAY" if grey else b"RGB ") + made[20:128] + table + data


def linear_of(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_profile_is_converted_and_said(tmp_path, mode):
    # Stored with gamma 1: the value v of an sRGB picture is linear_of(v) there.
    wanted = scene() if mode != "L" else scene()[..., 0]
    stored = Image.fromarray((linear_of(wanted / 255) * 255).round().astype(np.uint8))
    if mode == "RGBA":
        stored.putalpha(255)
    picture = read_saved(tmp_path / "wide.png", stored, icc_profile=gamma_profile(1.0, grey=mode == "L"))
    shown = picture.levels if mode != "L" else picture.levels[..., 0]
    bright = wanted > 100  # in the dark a level of gamma 1 is many of sRGB
    assert np.abs(shown.astype(int) - wanted)[bright].max() <= 2
    assert picture.notes == ("unnamed profile converted to sRGB",)
    assert picture.grey == (mode == "L")


def test_a_16_bit_grey_with_a_profile_is_converted_at_16_bits(tmp_path):
    wanted = np.linspace(0.5, 0.9, 4096).reshape(64, 64)
    stored = Image.fromarray((linear_of(wanted) * 65535).round().astype(np.uint16))
    picture = read_saved(tmp_path / "deep.png", stored, icc_profile=gamma_profile(1.0, grey=True))
    assert picture.bits == 16
    assert np.abs(picture.levels[..., 0] / 65535 - wanted).max() < 1.5 / 255
    assert len(np.unique(picture.levels[..., 0])) > 3000  # no steps of 8 bits


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_colour_with_a_profile_is_converted_at_16_bits(tmp_path, suffix):
    # Gamma 1: the value v of an sRGB picture is stored as linear_of(v).
    wanted = np.linspace(0.001, 0.999, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3)
    stored = (linear_of(wanted) * 65535).round().astype(np.uint16)
    path = tmp_path / f"deep.{suffix}"
    if suffix == "png":
        write_deep_png(path, stored, gamma_profile(1.0))
    else:
        tifffile.imwrite(path, stored, photometric="rgb", iccprofile=gamma_profile(1.0))
    picture = read_picture(path)
    assert (picture.bits, picture.notes) == (16, ("unnamed profile converted to sRGB",))
    error = np.abs(picture.levels / 65535 - wanted)
    assert error.max() < 5e-4  # in the dark a level of gamma 1 is 13 of sRGB
    assert error[wanted > 0.5].max() < 4e-5


@pytest.mark.parametrize("curve", ["gamma", "table", "para"])
def test_a_wide_profile_at_16_bits_agrees_with_little_cms_at_8(curve):
    # Display P3's colorants, under D50.
    colorants = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
    made = {
        "gamma": b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0",
        "table": b"curv\0\0\0\0" + struct.pack(">I4H", 4, 0, 9000, 30000, 65535),
        "para": b"para\0\0\0\0" + struct.pack(">HH5i", 3, 0, *fixed_point(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)),
    }[curve]  # fmt: skip
    body = gamma_profile(2.2)
    (count,) = struct.unpack(">I", body[128:132])
    entries = [struct.unpack(">4sII", body[132 + 12 * i : 144 + 12 * i]) for i in range(count)]
    tags = {name: body[at : at + length] for name, at, length in entries}
    for name, xyz in zip("rgb", colorants, strict=True):
        tags[f"{name}XYZ".encode()] = b"XYZ \0\0\0\0" + struct.pack(">3i", *fixed_point(*xyz))
        tags[f"{name}TRC".encode()] = made
    table, data, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(data), len(content))
        data += content + b"\0" * (-len(content) % 4)
    profile = struct.pack(">I", 128 + len(table) + len(data)) + body[4:128] + table + data
    image = Image.fromarray(scene())
    expected = np.asarray(to_srgb(image, profile).image, dtype=int)
    found = deep_to_srgb(scene().astype(np.uint16) * 257, profile)
    assert np.abs(found / 257 - expected).max() < 1.6
    assert np.abs(found / 257 - expected).mean() < 0.4
    assert deep_to_srgb(scene().astype(np.uint16), gamma_profile(2.2, grey=True)) is None


def fixed_point(*values: float) -> list[int]:
    return [round(value * 65536) for value in values]


def write_deep_png(path: Path, levels: np.ndarray, profile: bytes) -> None:
    with open(path, "wb") as file:
        write_strips(PngWriter(file, size=levels.shape[1::-1], channels=3, bits=16, icc_profile=profile), [levels])


def test_srgb_is_left_alone_to_the_bit_and_a_wrong_profile_is_said(tmp_path):
    image = Image.fromarray(scene())
    assert np.array_equal(read_saved(tmp_path / "a.png", image, icc_profile=srgb_profile()).levels, scene())
    for profile, said in ((b"nonsense", "damaged"), (gamma_profile(1.0, grey=True), "is for GRAY and was ignored")):
        picture = read_saved(tmp_path / "b.png", image, icc_profile=profile)
        assert np.array_equal(picture.levels, scene())
        assert said in picture.notes[0]


@pytest.mark.parametrize(
    ("mode", "name", "tolerance", "notes"),
    [
        ("CMYK", "a.tif", 1, ("CMYK converted to sRGB without a profile",)),
        ("LAB", "a.tif", 16, ("LAB converted to sRGB",)),
        ("YCbCr", "a.jpg", 12, ()),
    ],
)
def test_other_colour_spaces_come_out_as_rgb_and_it_is_said(tmp_path, mode, name, tolerance, notes):
    image = Image.fromarray(scene())
    if mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), 1, "LAB"
        )
    else:
        image = image.convert(mode)
    picture = read_saved(tmp_path / name, image, **({"quality": 98, "subsampling": 0} if name.endswith("jpg") else {}))
    assert np.abs(picture.levels.astype(int) - scene()).max() <= tolerance
    assert not picture.grey
    assert picture.notes == notes


# --- alpha, grey, palettes


def test_alpha_is_kept_beside_the_colours_under_it(tmp_path):
    alpha = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    for name in ("a.png", "a.tif", "a.webp"):
        options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
        picture = read_saved(tmp_path / name, Image.fromarray(np.dstack([scene(), alpha])), **options)
        assert np.array_equal(picture.levels, scene())
        assert np.array_equal(picture.alpha, alpha)
        assert not picture.grey
    grey = read_saved(tmp_path / "la.png", Image.fromarray(np.dstack([scene()[..., 0], alpha]), "LA"))
    assert np.array_equal(grey.alpha, alpha)
    assert grey.grey


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_one_transparent_colour_becomes_alpha(tmp_path, mode):
    colours = np.full((4, 4, 3), 200, np.uint8)
    colours[0, 0] = (10, 10, 10) if mode == "L" else (10, 20, 30)
    image = Image.fromarray(colours)
    image = image.quantize(4, dither=Image.Dither.NONE) if mode == "P" else image.convert(mode)
    hole = image.getpixel((0, 0))
    picture = read_saved(tmp_path / "hole.png", image, transparency=hole)
    assert picture.alpha[0, 0] == 0
    assert (picture.alpha.ravel()[1:] == 255).all()
    assert picture.on_white()[0, 0].tolist() == [255, 255, 255]
    assert picture.on_white()[1, 1].tolist() == [200, 200, 200]


def test_grey_is_known_by_its_mode_and_by_its_pixels(tmp_path):
    grey = Image.fromarray(scene()[..., 0])
    for mode in ("L", "RGB", "1", "P"):
        assert read_saved(tmp_path / "grey.png", grey.convert(mode)).grey
    assert not read_saved(tmp_path / "colour.png", Image.fromarray(scene())).grey


# --- EXIF, frames, damage


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_every_orientation_is_turned_upright(tmp_path, suffix, mode, orientation):
    if (suffix, mode) == ("png", "CMYK"):
        pytest.skip("PNG holds no CMYK")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(scene()[..., 0].astype(np.uint16) * 257) if mode == "I;16" else None
    picture = read_saved(tmp_path / f"a.{suffix}", image or Image.fromarray(scene()).convert(mode), exif=exif)
    wanted = scene() if mode not in ("L", "I;16") else np.asarray(Image.fromarray(scene()).convert("L"))
    wanted = scene()[..., 0] if mode == "I;16" else wanted
    # Pillow's names for what ImageOps.exif_transpose does: flips, turns, transposes.
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
    wanted = wanted if turn is None else np.asarray(Image.fromarray(wanted).transpose(turn))
    shown = picture.levels if wanted.ndim == 3 else picture.levels[..., 0]
    shown = (shown // 257).astype(np.uint8) if mode == "I;16" else shown
    assert shown.shape == wanted.shape
    assert np.abs(shown.astype(int) - wanted).max() <= (1 if mode == "CMYK" else 0)
    assert ("turned upright" in picture.notes) == (orientation != 1)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_16_bit_colour_is_turned_upright_as_well(tmp_path, suffix, orientation):
    levels = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint16).reshape(HEIGHT, WIDTH, 3) * 17
    path = tmp_path / f"deep.{suffix}"
    assert cv2.imwrite(str(path), np.ascontiguousarray(levels[..., ::-1]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if suffix == "png":
        content = path.read_bytes()
        chunk = io.BytesIO()
        PngImagePlugin.putchunk(chunk, b"eXIf", exif.tobytes()[6:])
        path.write_bytes(content[:33] + chunk.getvalue() + content[33:])
    else:
        tifffile.imwrite(path, levels, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    assert np.array_equal(read_picture(path).levels, np.rot90(levels, turns))


def test_exif_is_carried_without_what_no_longer_holds(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x8298], exif[0x0112] = "Maker", "Model 5", "© Ann", 6
    exif[0x0100] = WIDTH  # the file's own structure
    exif[0x8769] = {0x829A: 0.01, 0xA002: WIDTH, 0xA003: HEIGHT}
    exif[0x8825] = {1: "N", 2: (46.0, 30.0, 0.0)}
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        picture = read_saved(tmp_path / name, Image.fromarray(scene()), exif=exif.tobytes())
        carried = Image.Exif()
        carried.load(picture.exif)
        assert carried[0x010F] == "Maker"
        assert carried[0x0110] == "Model 5"
        assert {0x0112, 0x0100, 0x0111} & set(carried) == set()
        assert float(carried.get_ifd(0x8769)[0x829A]) == pytest.approx(0.01)
        assert 0xA002 not in carried.get_ifd(0x8769)
        assert [float(v) for v in carried.get_ifd(0x8825)[2]] == [46.0, 30.0, 0.0]
        assert picture.notes == ("turned upright",)


def test_damaged_exif_is_left_out_and_the_picture_is_read(tmp_path):
    picture = read_saved(tmp_path / "a.jpg", Image.fromarray(scene()), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert picture.levels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.gif", "frames"), ("a.webp", "frames"), ("a.png", "frames"), ("a.tif", "pages")]
)
def test_of_an_animation_the_first_frame_is_taken_and_said(tmp_path, name, kind):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if name.endswith("webp") else {}
    picture = read_saved(tmp_path / name, first, save_all=True, append_images=[second], **options)
    assert picture.levels[4, 4].tolist() == [255, 0, 0]
    assert picture.notes == (f"first of several {kind}",)
    with Image.open(tmp_path / name) as image:
        assert len(list(ImageSequence.Iterator(image))) == 2


def test_the_first_page_is_read_though_the_second_is_broken(tmp_path):
    path, page = tmp_path / "a.tif", Image.new("RGB", (8, 8), (255, 0, 0))
    page.save(path)
    content = bytearray(path.read_bytes())
    end = int.from_bytes(content[4:8], "little")
    end += 2 + 12 * int.from_bytes(content[end : end + 2], "little")
    content[end : end + 4] = len(content).to_bytes(4, "little")
    path.write_bytes(content + bytes(6))  # a directory of nothing
    picture = read_picture(path)
    assert picture.levels[4, 4].tolist() == [255, 0, 0]
    assert picture.notes == ("first of several pages",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC picture, whatever its name"),
        (b"\0\1\2\3" * 50, "no picture in a format that Pillow reads"),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_what_is_no_picture_is_called_what_it_is(tmp_path, content, said, suffix):
    (tmp_path / f"bad.{suffix}").write_bytes(content)
    with pytest.raises(UnreadableImage, match=said):
        read_picture(tmp_path / f"bad.{suffix}")


@pytest.mark.parametrize("suffix", [s for s in IMAGE_SUFFIXES if s not in (".mpo", ".icns", ".psd", ".ras", ".avifs")])
def test_every_suffix_is_one_that_pillow_reads(tmp_path, suffix):
    Image.init()
    kind = Image.registered_extensions()[suffix]
    image = Image.fromarray(scene())
    if suffix in (".xbm", ".msp"):
        image = image.convert("1")
    if kind in Image.SAVE and kind != "XPM":
        if suffix == ".pfm":
            image = image.convert("F")
        if suffix in (".bw",):
            image = image.convert("L")
        assert read_saved(tmp_path / f"a{suffix}", image, format=kind).levels.shape[2] == 3
    assert kind in Image.OPEN


def test_a_path_that_is_not_utf_8_is_read(tmp_path):
    path = Path(bytes(tmp_path).decode()) / b"gr\xfcn.png".decode(errors="surrogateescape")
    deep = np.full((4, 4, 3), 1000, np.uint16)
    ok, content = cv2.imencode(".png", deep)
    path.write_bytes(content.tobytes())
    assert ok
    assert read_picture(path).levels[0, 0].tolist() == [1000, 1000, 1000]


def test_reading_takes_no_more_memory_than_the_levels_and_pillows_own(tmp_path):
    side = 1500
    Image.fromarray(np.random.Generator(np.random.Philox(1)).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(
        tmp_path / "large.bmp"
    )
    tracemalloc.start()
    read_picture(tmp_path / "large.bmp")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # NumPy's part: the levels (3 bytes a pixel) and their bytes on the way from Pillow; a comparison in bools at most.
    assert peak < 9.5 * side * side
