"""Shell scripts that run on a machine; they need only a POSIX shell and /proc.

A deployment has a folder there, and each worker one inside: `pid`, `log`, `said` (its announcement), `draining` when it
was asked to end. A process is a worker only if its environment has the tag: process ids are reused, tags are not.
Every answer is a line that begins with "triptych" and a tab; what else a login prints is not ours.
"""

# $1: the deployment's folder; $2: its tag; $3: the owner who asks. `owned` ends with 91 if another user created it.
PRELUDE = r"""
[ -r /proc/self/environ ] || { echo "expected Linux, which has /proc" >&2; exit 1; }
case $1 in /*) folder=$1 ;; *) folder=$HOME/$1 ;; esac
tag=$2 owner=$3
shift 3
says() { grep -qzxF -e "$2" "/proc/$1/environ" 2>/dev/null; }
# Whether the worker of that folder lives; sets pid.
lives() {
    { read -r pid <"$1/pid"; } 2>/dev/null || return 1
    says "$pid" "TRIPTYCH_DEPLOYMENT=$tag" && says "$pid" "TRIPTYCH_WORKER=${1##*/}"
}
tagged() {
    grep -lzxF -e "TRIPTYCH_DEPLOYMENT=$tag" /proc/[0-9]*/environ 2>/dev/null | tr -dc '0-9\n'
}
owned() {
    other=
    { read -r other <"$folder.owner"; } 2>/dev/null
    for pid in $(tagged); do
        [ -z "$other" ] || break
        other=$(tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | sed -n 's/^TRIPTYCH_DEPLOYMENT_OWNER=//p')
    done
    [ -z "$other" ] || [ "$other" = "$owner" ] || { printf '%s\n' "$other" >&2; exit 91; }
}
"""

# The worker's folder, the command, VARIABLE=VALUE..., --, whether files come, the arguments of `triptych serve`.
LAUNCH = (
    PRELUDE
    + r"""
worker=$1 command=$2
shift 2
case $command in "~/"*) command=$HOME/${command#"~/"} ;; esac
command -v -- "$command" >/dev/null || exit 90
while [ "$1" != -- ]; do export "$1"; shift; done
shift
export TRIPTYCH_DEPLOYMENT="$tag" TRIPTYCH_DEPLOYMENT_OWNER="$owner" TRIPTYCH_WORKER="$worker" PYTHONUNBUFFERED=1
umask 077
owned
# A link is made by one of several that start at once.
mkdir -p "$folder" && printf '%s\n' "$owner" >"$folder.owner.$$" || exit 1
ln "$folder.owner.$$" "$folder.owner" 2>/dev/null
rm -f "$folder.owner.$$"
owned
mkdir -p "$folder/$worker" && cd "$folder/$worker" || exit 1
[ "$1" = no ] || tar -xf - || exit 1
shift
detached=$(command -v setsid || command -v nohup)
# The process itself says its number, before it becomes the worker: so there is none without.
"$detached" sh -c 'echo $$ >number && mv number pid && exec "$@"' sh "$command" serve "$@" </dev/null >said 2>log &
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
    [ -e pid ] && printf 'triptych\tstarted\n' && exit 0
    sleep 0.1
done
echo "it did not start within 3 s" >&2
exit 1
"""
)

# Every worker that there is or was: its folder's name, its state, what it announced.
LIST = (
    PRELUDE
    + r"""
for here in "$folder"/*; do
    [ -d "$here" ] || continue
    state=ended
    if lives "$here"; then
        state=running
        [ ! -e "$here/draining" ] || state=draining
    fi
    said=
    { read -r said <"$here/said"; } 2>/dev/null
    printf 'triptych\t%s\t%s\t%s\n' "${here##*/}" "$state" "$said"
done
exit 0
"""
)

# Ends with 91 if another user created the deployment.
CHECK_OWNER = PRELUDE + "owned\nexit 0\n"

# The number in a worker's name, how many lines (+1: all); goes on until the worker has ended.
FOLLOW = (
    PRELUDE
    + r"""
for here in "$folder"/*-"$1"; do
    [ -e "$here/log" ] || continue
    tail -n "$2" -F -- "$here/log" 2>/dev/null &
    tail=$!
    trap 'kill "$tail" 2>/dev/null' EXIT HUP TERM PIPE
    # Also when nobody reads any more.
    while lives "$here" && kill -0 "$tail" 2>/dev/null; do sleep 1; done
    sleep 1
done
exit 0
"""
)

# The number in a worker's name, how many lines.
LOGS = (
    PRELUDE
    + r"""
for here in "$folder"/*-"$1"; do
    [ -e "$here/log" ] && tail -n "$2" -- "$here/log" | sed 's/^/triptych\t/'
done
exit 0
"""
)

# The number in a worker's name.
DRAIN = (
    PRELUDE
    + r"""
owned
for here in "$folder"/*-"$1"; do
    lives "$here" && [ ! -e "$here/draining" ] && touch "$here/draining" && kill -TERM "$pid" 2>/dev/null
done
exit 0
"""
)

# The number in a worker's name, seconds to wait.
STOP = (
    PRELUDE
    + r"""
owned
for here in "$folder"/*-"$1"; do
    lives "$here" || continue
    kill -KILL "$pid" 2>/dev/null
    left=$(($2 * 10))
    while lives "$here"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || { echo "process $pid does not end" >&2; exit 1; }
        sleep 0.1
    done
done
exit 0
"""
)

# Seconds that workers have to end by themselves. Looks at every process, so that it finds those whose folder is gone.
TEARDOWN = (
    PRELUDE
    + r"""
owned
end() {
    left=$(($2 * 10))
    pids=$(tagged)
    while [ -n "$pids" ]; do
        # Once each: a worker takes a second signal for haste.
        for pid in $pids; do
            case " $asked " in *" $1:$pid "*) ;; *) kill "-$1" "$pid" 2>/dev/null; asked="$asked $1:$pid" ;; esac
        done
        left=$((left - 1))
        [ "$left" -gt 0 ] || return
        sleep 0.1
        pids=$(tagged)
    done
}
asked=
end TERM "$1"
end KILL 5
for pid in $(tagged); do
    printf 'triptych\tprocess %s\n' "$pid"
    exit 0
done
rm -rf -- "$folder" "$folder.owner"
exit 0
"""
)
