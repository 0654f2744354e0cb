"""What both ends of every connection of ours set, with its reason.

gRPC's defaults suit calls of milliseconds. Ours are streams that last minutes, are silent while a device computes, and
carry images; so a peer that hangs must be distinguished from one that is busy.
"""

# A 2048 px RGB image is 12 MiB at worst as PNG: room for two, for several sketches, or for the 10 MB prompt that deserves
# a better answer than "message too large". gRPC's own limit is 4 MiB.
MAX_MESSAGE_BYTES = 32 * 2**20

MESSAGE_SIZES = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)

# A peer that was stopped or unplugged keeps its connection open. With both at their defaults that shows after more than a
# minute; so: ask after 4 s of silence, wait 5 s for the answer, and notice within 10 s.
PING_AFTER_MS = 4_000
PING_TIMEOUT_MS = 5_000

KEEPALIVE = (
    ("grpc.keepalive_time_ms", PING_AFTER_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    # Since gRPC 1.63 every ping has a timeout of its own, 60 s, and the longer of the two is the one that counts.
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    # Otherwise gRPC stops asking after two pings without data, in the middle of a long silent step.
    ("grpc.http2.max_pings_without_data", 0),
)
