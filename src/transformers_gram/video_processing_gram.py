"""Video processor for GRAM: frames to `pixel_values_videos`, in torch alone."""

from typing import Annotated, Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from PIL import Image
from torch.nn import functional as F
from transformers import BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    infer_channel_dimension_format,
)
from transformers.processing_utils import VideosKwargs
from transformers.utils.type_validators import positive_int
from transformers.video_processing_utils import VideoProcessorMixin

from .media import read_video, sample_frame_indices


class GramVideosKwargs(VideosKwargs, total=False):
    """
    num_frames (`int`): frames per video; see [`sample_frame_indices`].
    antialias (`bool`): low-pass filter when shrinking. Off in the paper's reference.
    """

    num_frames: Annotated[int | None, positive_int()]
    antialias: bool | None


class GramVideoProcessor(VideoProcessorMixin):
    """
    Frames of videos, resized, cropped and normalised.

    The shorter side is resized to `size["shortest_edge"]` (or both to `height` and `width`, which may squash), the
    middle `crop_size` is cut out, uint8 is scaled to [0, 1], and everything is normalised with `image_mean` and
    `image_std`.

    A video is a path, bytes or file object, an array or tensor `[frames, height, width, 3]` or `[frames, 3, height,
    width]`, or a list of images (PIL, arrays). Of more frames than `num_frames`, as many are sampled; fewer are an
    error.
    """

    valid_kwargs = GramVideosKwargs
    num_frames = 8
    do_resize = True
    size = {"shortest_edge": 224}
    default_to_square = False
    antialias = False
    do_center_crop = True
    crop_size = {"height": 224, "width": 224}
    do_rescale = True
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD

    def __init__(self, **kwargs):
        self._check(kwargs, also={"video_processor_type", "processor_class", "auto_map"})
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)

    def _check(self, kwargs: dict[str, Any], also: set[str] = frozenset()):
        if unknown := kwargs.keys() - self.valid_kwargs.__annotations__.keys() - also:
            raise TypeError(f"{type(self).__name__} has no arguments {sorted(unknown)}.")
        validate_typed_dict(self.valid_kwargs, {key: kwargs[key] for key in kwargs.keys() - also})

    def load(self, video: Any, rng: np.random.Generator | None = None) -> np.ndarray:
        """
        The sampled frames of one video, uint8 or float `[num_frames, height, width, 3]`.

        Without `rng` the middle frame of each of `num_frames` segments, with it a random one (training).
        """
        if isinstance(video, (list, tuple)):
            images = [np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image) for image in video]
            if len(shapes := {image.shape for image in images}) != 1:
                raise ValueError(f"The images of a video must be of one shape, at least one; got {sorted(shapes)}.")
            video = np.stack(images)
        elif not isinstance(video, (np.ndarray, torch.Tensor)):
            return read_video(video, self.num_frames, rng)
        frames = video.detach().cpu().numpy() if isinstance(video, torch.Tensor) else video
        if frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
            raise ValueError(
                f"A video array must be [frames, height, width, 3] or [frames, 3, height, width]; got "
                f"{list(frames.shape)}. Several videos go into a list, and so does one of images: [[image, image]]."
            )
        if infer_channel_dimension_format(frames, num_channels=3) == ChannelDimension.FIRST:
            frames = frames.transpose(0, 2, 3, 1)
        return frames[sample_frame_indices(len(frames), self.num_frames, rng)]

    def preprocess(self, videos, rngs: list[np.random.Generator | None] | None = None, return_tensors="pt", **kwargs):
        """
        Args:
            videos: one video or a list of them, see the class.
            rngs (`list[numpy.random.Generator]`, *optional*): one per video, to sample random frames.
            return_tensors (`str`): "pt" or "np".
            kwargs: any attribute of the processor, for this call only.

        Returns:
            [`BatchFeature`] with `pixel_values_videos` `(videos, num_frames, 3, height, width)`, float32.

        Raises:
            MediaError, FileNotFoundError: for a file that cannot be read.
            ValueError: for arrays of the wrong shape or range, too few frames, or outputs of different sizes.
            TypeError: for an argument that the processor has not.
        """
        if kwargs:
            self._check(kwargs)
            return type(self)(**{**self.to_dict(), **kwargs}).preprocess(videos, rngs, return_tensors)
        if not isinstance(videos, (list, tuple)) or (len(videos) and isinstance(videos[0], Image.Image)):
            videos = [videos]
        if len(videos) == 0:
            raise ValueError("Give at least one video.")
        rngs = rngs or [None] * len(videos)
        pixel_values = [self._transform(self.load(video, rng)) for video, rng in zip(videos, rngs, strict=True)]
        if len(shapes := {tuple(video.shape) for video in pixel_values}) > 1:
            raise ValueError(f"Videos came out in different shapes {sorted(shapes)}; set `do_center_crop` and `size`.")
        if return_tensors not in ("pt", "np"):
            raise ValueError(f"`return_tensors` must be 'pt' or 'np'; got {return_tensors!r}.")
        stacked = torch.stack(pixel_values)
        return BatchFeature({"pixel_values_videos": stacked if return_tensors == "pt" else stacked.numpy()})

    def _transform(self, frames: np.ndarray) -> torch.Tensor:
        video = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
        if not video.is_floating_point() and video.dtype != torch.uint8:
            raise ValueError(f"Frames of integers must be uint8; got {video.dtype}. Scale others to floats in [0, 1].")
        if self.do_rescale and not video.is_floating_point():
            video = video * self.rescale_factor
        elif self.do_rescale and not (video.min() >= 0 and video.max() <= 1):
            raise ValueError(
                f"Frames of floating point numbers must lie in [0, 1]; got [{video.min():g}, {video.max():g}]. Give "
                "integers in [0, 255], or set `do_rescale=False`."
            )
        video = video.float()
        if self.do_resize:
            video = self._resize(video)
        if self.do_center_crop:
            video = self._center_crop(video)
        if self.do_normalize:
            mean, std = torch.tensor(self.image_mean), torch.tensor(self.image_std)
            video = (video - mean[:, None, None]) / std[:, None, None]
        return video

    def _resize(self, video: torch.Tensor) -> torch.Tensor:
        height, width = video.shape[-2:]
        if self.size.get("shortest_edge"):
            edge, shortest = self.size["shortest_edge"], min(height, width)
            target = (height * edge // shortest, width * edge // shortest)
        else:
            target = (self.size["height"], self.size["width"])
        if target == (height, width):
            return video
        return F.interpolate(video, target, mode="bilinear", align_corners=False, antialias=self.antialias)

    def _center_crop(self, video: torch.Tensor) -> torch.Tensor:
        height, width = self.crop_size["height"], self.crop_size["width"]
        if video.shape[-2] < height or video.shape[-1] < width:
            raise ValueError(
                f"Frames of {list(video.shape[-2:])} are smaller than the crop {[height, width]}; resize them with "
                "`size`, or choose a smaller `crop_size`."
            )
        top, left = round((video.shape[-2] - height) / 2), round((video.shape[-1] - width) / 2)
        return video[..., top : top + height, left : left + width]


__all__ = ["GramVideoProcessor"]
