"""How many numbers are alive at once, in tensors of some size: what a graph keeps, counted exactly."""

from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class live_numbers(TorchDispatchMode):
    """`peak` is the most numbers held at any time by the tensors of at least `least` numbers that were made inside."""

    def __init__(self, least):
        super().__init__()
        self.least, self.peak, self.held, self.most = least, 0, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if hasattr(made, "untyped_storage") and made.numel() >= self.least:
                storage = made.untyped_storage()
                if storage.data_ptr() not in self.held:
                    self.most += storage.nbytes() // made.element_size()
                self.held[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes() // made.element_size()
        if self.most > self.peak:  # if none of them had died since they were last counted
            self.held = {where: kept for where, kept in self.held.items() if not kept[0].expired()}
            self.most = sum(size for _, size in self.held.values())
            self.peak = max(self.peak, self.most)
        return out
