"""The form that media must have for a model to read them. `transfusion.latents` finds it in the model's tables."""

import dataclasses
import math
from collections.abc import Collection, Mapping

from transfusion.data.config import SourceConfig
from transfusion.data.sizes import Size


@dataclasses.dataclass(frozen=True)
class Form:
    """The form that media of one kind must have for a model to read them.

    Attributes:
      sizes: heights and widths in pixels; () means all sizes that `multiple` divides.
      multiple: the number that must divide the sides if `sizes` is ().
      channels: 1 or 3; with any other number the channels of media are left unchanged.
      length: number of frames or samples; 0: any.
      rate: samples per second; 0: any.
      area: the most pixels of a picture for which a row has room; 0: not known.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    multiple: int = 1
    channels: int = 0
    length: int = 0
    rate: int = 0
    area: int = 0

    def holds(self, size: Size) -> bool:
        """Whether a model reads pictures of this size."""
        if self.sizes:
            return size in self.sizes
        return not any(side % self.multiple for side in size) and size[0] * size[1] <= (self.area or math.inf)


def sized(forms: Mapping[str, Form], sources: Mapping[str, SourceConfig]) -> dict[str, Form]:
    """The forms of a model that is trained on these sources: where it reads any size, those that the sources have."""
    if not any(source.sizes for source in sources.values()):
        return dict(forms)
    sizes = tuple(dict.fromkeys(size for source in sources.values() for size in source.fitted))
    any_size = {kind: form for kind, form in forms.items() if kind in ("image", "video") and not form.sizes}
    return dict(forms) | {kind: dataclasses.replace(form, sizes=sizes) for kind, form in any_size.items()}


def unfit(found: str, forms: Collection[Form]) -> str:
    """What is wrong with the size of a picture, in words."""
    sizes = [f"{height}x{width}" for height, width in sorted({size for form in forms for size in form.sizes})]
    free = [form for form in forms if not form.sizes]
    sizes += [f"multiples of {f.multiple} pixels" + f" and at most {f.area} in all" * bool(f.area) for f in free]
    return f"{found} does not fit the streams' images of {' or '.join(sizes)}"
