"""What holds of a DeviceProgram without a GPU; tests/gpu has what a captured graph must hold."""

import torch

from services.pytorch.device_program import DeviceProgram, bucket_sizes

CPU = torch.device("cpu")


def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_on_a_cpu_the_function_itself_is_called_with_as_many_rows_as_there_are():
    program = DeviceProgram(doubled, CPU, sizes=bucket_sizes(6))
    assert (program.mode, program.num_rows(3), program.sizes) == ("direct", 3, (1, 6))
    assert program(torch.ones(3)).tolist() == [2, 2, 2]


def test_where_shapes_are_captured_rows_come_in_a_few_sizes():
    program = DeviceProgram(doubled, CPU, sizes=bucket_sizes(6), mode="graph")
    assert program.sizes == (1, 2, 4, 6)
    assert [program.num_rows(count) for count in (1, 3, 4, 5, 6)] == [1, 4, 4, 6, 6]


def test_what_it_returns_has_no_gradient():
    program = DeviceProgram(doubled, CPU, sizes=[1])
    assert not program(torch.ones(1, requires_grad=True)).requires_grad
