"""torchimpt: differentiable dose and fast robust optimization for intensity-modulated proton therapy.

`import torchimpt as ti` loads nothing heavy: the names that `__init__.pyi` lists are imported at their first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
