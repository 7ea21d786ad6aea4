"""Put tensors of another shape into a module, and set its declared sizes from its tensors."""

from torch import Tensor, nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.modules.batchnorm._NormBase,)  # BatchNorm and InstanceNorm


def replace_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor of another shape in a parameter's or buffer's place."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._buffers:
        module._buffers[leaf] = value.detach().clone()
    else:
        old = module._parameters[leaf]
        requires_grad = old is None or old.requires_grad
        module._parameters[leaf] = nn.Parameter(value.detach().clone(), requires_grad=requires_grad)


def fit_attributes(module: nn.Module) -> None:
    """Set a module's declared sizes from its tensors, so that it prints, exports and reloads as what it is."""
    if isinstance(module, CONVS):
        if module.groups > 1:  # conv groups go whole: filters a group stay what they were
            module.groups = module.weight.shape[0] // (module.out_channels // module.groups)
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, TRANSPOSED):
        if module.groups > 1:
            module.groups = module.weight.shape[0] // (module.in_channels // module.groups)
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.GroupNorm):
        if module.weight is not None:  # norm groups go whole
            module.num_groups = len(module.weight) // (module.num_channels // module.num_groups)
            module.num_channels = len(module.weight)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, NORMS):
        tensor = module.weight if module.weight is not None else module.running_mean
        module.num_features = len(tensor) if tensor is not None else module.num_features
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
