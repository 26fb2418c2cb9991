"""Video processor for GRAM: frames to `pixel_values_videos`, in torch alone."""

from typing import Annotated, Any

import numpy as np
import torch
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
    middle `crop_size` is cut out, values are scaled to [0, 1] and normalised with `image_mean` and `image_std`.

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
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)

    def load(self, video: Any, rng: np.random.Generator | None = None) -> np.ndarray:
        """
        The sampled frames of one video, uint8 or float `[num_frames, height, width, 3]`.

        Without `rng` the middle frame of each of `num_frames` segments, with it a random one (training).
        """
        if isinstance(video, (list, tuple)):
            images = [image.convert("RGB") if isinstance(image, Image.Image) else image for image in video]
            video = np.stack([np.asarray(image) for image in images])
        elif not isinstance(video, (np.ndarray, torch.Tensor)):
            return read_video(video, self.num_frames, rng)
        frames = np.asarray(video)
        if frames.ndim != 4:
            raise ValueError(f"A video array must have 4 axes [frames, height, width, 3]; got {list(frames.shape)}.")
        if infer_channel_dimension_format(frames, num_channels=3) == ChannelDimension.FIRST:
            frames = frames.transpose(0, 2, 3, 1)
        return frames[sample_frame_indices(len(frames), self.num_frames, rng)]

    def preprocess(self, videos, rngs: list[np.random.Generator | None] | None = None, return_tensors="pt", **kwargs):
        """
        Args:
            videos: one video or a list of them, see the class.
            rngs (`list[numpy.random.Generator]`, *optional*): one per video, to sample random frames.
            kwargs: any attribute of the processor, for this call only.

        Returns:
            [`BatchFeature`] with `pixel_values_videos` `(videos, num_frames, 3, height, width)`, float32.

        Raises:
            MediaError, FileNotFoundError: for a file that cannot be read.
            ValueError: for arrays of the wrong shape, too few frames, or outputs of different sizes.
        """
        if kwargs:
            return type(self)(**{**self.to_dict(), **kwargs}).preprocess(videos, rngs, return_tensors)
        if not isinstance(videos, (list, tuple)) or (len(videos) and isinstance(videos[0], Image.Image)):
            videos = [videos]
        rngs = rngs or [None] * len(videos)
        pixel_values = [self._transform(self.load(video, rng)) for video, rng in zip(videos, rngs, strict=True)]
        if len(shapes := {tuple(video.shape) for video in pixel_values}) > 1:
            raise ValueError(f"Videos came out in different shapes {sorted(shapes)}; set `do_center_crop` and `size`.")
        data = {"pixel_values_videos": torch.stack(pixel_values)}
        return BatchFeature(data if return_tensors == "pt" else {k: v.numpy() for k, v in data.items()})

    def _transform(self, frames: np.ndarray) -> torch.Tensor:
        video = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))).float()
        if self.do_rescale:
            video = video * self.rescale_factor
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
