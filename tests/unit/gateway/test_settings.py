from pathlib import Path

from pathlens.gateway import GatewaySettings
from pathlens.torchserve import TorchServeSettings

MEBIBYTE = 2**20


def test_the_java_heap_has_room_for_what_the_gateway_sends() -> None:
    gateway, torchserve = GatewaySettings(), TorchServeSettings(archives=(Path("digits.mar"),))
    old_generation = torchserve.heap_megabytes * MEBIBYTE * 2 / 3
    # The arithmetic is explained beside the setting.
    assert 2 * gateway.max_in_flight_bytes + 3 * torchserve.max_message_bytes + 60 * MEBIBYTE < old_generation


def test_both_sides_agree_on_messages_and_the_queue() -> None:
    gateway, torchserve = GatewaySettings(), TorchServeSettings(archives=(Path("digits.mar"),))
    assert gateway.max_message_bytes == torchserve.max_message_bytes
    assert gateway.requests_in_flight(torchserve.workers) < torchserve.job_queue_size
    assert gateway.upstream_timeout_seconds > torchserve.response_timeout_seconds


def test_torchserve_holds_three_requests_for_each_worker_unless_told_otherwise() -> None:
    gateway = GatewaySettings()
    assert [gateway.requests_in_flight(), gateway.requests_in_flight(3)] == [3, 9]
    assert [gateway.for_workers(3).requests_in_flight(), gateway.for_workers(3).max_in_flight] == [9, 9]
    assert GatewaySettings(max_in_flight=5).for_workers(3).requests_in_flight(2) == 5
