"""What is written for one kind of processor: C++ built at installation, and torch's own kernels wherever that is missing."""

from models.native.attention import attend as attend
from models.native.attention import available as available
from models.native.attention import suits as suits
