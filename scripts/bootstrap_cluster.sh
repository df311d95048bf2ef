#!/usr/bin/env bash
#
# From a list of hosts and ports to a cluster that serves.
#
# Node nK is the K-th of the list. What already runs is left alone, so running this again starts
# only what is missing, and the same list must be given (it is remembered in DIR/hosts). A node that
# is started has its log in DIR/nK.log and its process id in DIR/nK.pid, on its own host; the data
# is in DIR/nK, which the node locks for itself. All work on a host is done by one small program,
# `on_host`, which runs here for loopback hosts and through ssh for others.

set -euo pipefail

if ((BASH_VERSINFO[0] < 4)); then
    echo "bootstrap_cluster: bash 4 or newer is needed, this is $BASH_VERSION" >&2
    exit 2
fi

usage() {
    cat <<'HELP'
Usage: bootstrap_cluster.sh [options] [HOST:PORT[:HTTP_PORT] ...] [-- SERVE_OPTION ...]

Start the nodes of a cluster that do not run yet, and wait until all of them serve.
Without hosts: those of the last time in --dir, or else three nodes on loopback,
127.0.0.1:7401:8401 127.0.0.1:7402:8402 127.0.0.1:7403:8403.
HTTP_PORT is PORT + 1000 by default. What follows -- is given to every `kvstore serve`.

  --hosts FILE          read the hosts from FILE: one or more a line, # begins a comment
  --dir DIR             data, logs and process ids of the nodes of this machine [var/bootstrap]
  --timeout SECONDS     how long to wait for readiness, or for the end with --stop [60]
  --stop                stop the nodes that this script started
  --cluster NAME        the cluster's name [ringkv]
  --insecure            let nodes listen beyond loopback although there is no authentication yet
  --kvstore COMMAND     kvstore on this machine [the one of this checkout, or of PATH]
  --ssh COMMAND         in place of: ssh -o BatchMode=yes -o ConnectTimeout=10
  --ssh-always          use ssh for loopback hosts, too
  --ssh-user USER       log in as USER
  --remote-dir DIR      as --dir, on hosts reached by ssh [kvstore-cluster in the home directory]
  --remote-kvstore CMD  kvstore on hosts reached by ssh [kvstore]
  -h, --help            this text

Exit status: 0 all nodes serve (or have stopped), 1 some do not, 2 wrong usage.
HELP
}

say() { printf '%s\n' "$*"; }
complain() { printf 'bootstrap_cluster: %s\n' "$*" >&2; }
usage_error() {
    complain "$1 (--help shows the options)"
    exit 2
}

# --- What was asked for -------------------------------------------------------------------------

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
hosts=()
serve_options=()
hosts_file=''
dir='var/bootstrap'
timeout_s=60
stop=false
cluster=ringkv
kvstore=''
ssh=(ssh -o BatchMode=yes -o ConnectTimeout=10)
ssh_always=false
ssh_user=''
remote_dir=kvstore-cluster
remote_kvstore=kvstore

parse_arguments() {
    while (($# > 0)); do
        case $1 in
            -h | --help)
                usage
                exit 0
                ;;
            --stop) stop=true ;;
            --ssh-always) ssh_always=true ;;
            --insecure) serve_options+=(--insecure) ;;
            --)
                shift
                serve_options+=("$@")
                return
                ;;
            --hosts | --dir | --timeout | --cluster | --kvstore | --ssh | --ssh-user | \
                --remote-dir | --remote-kvstore)
                (($# > 1)) || usage_error "$1 needs a value"
                take_option "$1" "$2"
                shift
                ;;
            -*) usage_error "there is no option $1" ;;
            *) hosts+=("$1") ;;
        esac
        shift
    done
}

take_option() {
    case $1 in
        --hosts) hosts_file=$2 ;;
        --dir) dir=$2 ;;
        --timeout) timeout_s=$2 ;;
        --cluster) cluster=$2 ;;
        --kvstore) kvstore=$2 ;;
        --ssh) read -ra ssh <<<"$2" ;;
        --ssh-user) ssh_user=$2 ;;
        --remote-dir) remote_dir=$2 ;;
        --remote-kvstore) remote_kvstore=$2 ;;
    esac
}

# Adds the hosts of a file to `hosts`.
read_hosts() {
    local line words
    while read -r line || [[ -n $line ]]; do
        read -ra words <<<"${line%%#*}"
        hosts+=(${words[@]+"${words[@]}"})
    done <"$1"
}

# Fills names, host_of, port_of, http_port_of and founders from `hosts`.
names=()
host_of=()
port_of=()
http_port_of=()
founders=''
parse_hosts() {
    local host number=0 form='^(\[[0-9a-fA-F:.]+\]|[^]:@ []+):([0-9]{1,5})(:([0-9]{1,5}))?$'
    for host in "${hosts[@]}"; do
        [[ $host =~ $form ]] || usage_error "'$host' is not HOST:PORT or HOST:PORT:HTTP_PORT"
        number=$((number + 1))
        names+=("n$number")
        host_of+=("${BASH_REMATCH[1]}")
        port_of+=("${BASH_REMATCH[2]}")
        http_port_of+=("${BASH_REMATCH[4]:-$((10#${BASH_REMATCH[2]} + 1000))}")
        founders+="${founders:+,}${BASH_REMATCH[1]}:${BASH_REMATCH[2]}"
    done
}

settle_arguments() {
    [[ $timeout_s =~ ^[0-9]+$ ]] || usage_error "--timeout is a number of seconds, not '$timeout_s'"
    ((${#ssh[@]} > 0)) || usage_error "--ssh needs a command"
    if [[ -n $hosts_file ]]; then
        [[ -r $hosts_file ]] || usage_error "cannot read the hosts file '$hosts_file'"
        read_hosts "$hosts_file"
    fi
    if ((${#hosts[@]} == 0)) && [[ -r $dir/hosts ]]; then
        read_hosts "$dir/hosts"
    fi
    if ((${#hosts[@]} == 0)); then
        hosts=(127.0.0.1:7401:8401 127.0.0.1:7402:8402 127.0.0.1:7403:8403)
    fi
    parse_hosts
    mkdir -p -- "$dir"
    dir=$(cd -- "$dir" && pwd)
    python=python3
    [[ -x $root/.venv/bin/python ]] && python=$root/.venv/bin/python
    if [[ -z $kvstore ]]; then
        kvstore=kvstore
        [[ -x $root/.venv/bin/kvstore ]] && kvstore=$root/.venv/bin/kvstore
    fi
    command -v "$python" >/dev/null || usage_error "Python 3 is needed here to ask the nodes"
}

# --- On a node's host ---------------------------------------------------------------------------

# Reads a program for bash from stdin and runs it on node number $1's host; the other arguments are
# the program's. Its working directory is the one of the nodes on that host.
on_host() {
    local at=$1 where=$dir command target
    shift
    if is_remote "$at"; then
        where=$remote_dir
        target=${host_of[at]#[}
        target=${ssh_user:+$ssh_user@}${target%]}
        command="mkdir -p -- $(printf '%q' "$where") && cd -- $(printf '%q' "$where") && "
        command+="exec bash -s --$(printf ' %q' "$@")"
        "${ssh[@]}" "$target" "$command"
    else
        (cd -- "$where" && exec bash -s -- "$@")
    fi
}

is_remote() {
    $ssh_always && return 0
    case ${host_of[$1]} in
        127.* | localhost | '[::1]') return 1 ;;
        *) return 0 ;;
    esac
}

# Is the process of a pid file still that node? Ids are used again, so its command line must name
# the node's directory. For on_host: a function definition that programs begin with.
runs_program='
runs() {
    local pid arguments
    pid=$(cat -- "$1.pid" 2>/dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 1
    if [ -r "/proc/$pid/cmdline" ]; then
        arguments=$(tr "\0" " " <"/proc/$pid/cmdline")
    else
        arguments=$(ps -p "$pid" -o args=)
    fi
    case $arguments in *"--data-dir $PWD/$1 "*) return 0 ;; *) return 1 ;; esac
}
'

# Starts node number $1 unless its process exists; prints "started" or "running".
start_node() {
    local at=$1 name=${names[$1]} program=$kvstore host
    is_remote "$at" && program=$remote_kvstore
    host=${host_of[at]#[}
    host=${host%]}
    on_host "$at" "$name" "$program" \
        --host "$host" --port "${port_of[at]}" --http-port "${http_port_of[at]}" \
        --cluster "$cluster" --founders "$founders" \
        ${serve_options[@]+"${serve_options[@]}"} <<<"$runs_program"'
        name=$1 program=$2
        shift 2
        if runs "$name"; then echo running; exit; fi
        command -v "${program%% *}" >/dev/null || {
            echo "there is no $program on $(uname -n): install ringkv there, or say where it is" \
                "with --kvstore, or --remote-kvstore for hosts reached by ssh" >&2
            exit 1
        }
        detach=nohup
        command -v setsid >/dev/null && detach="nohup setsid"
        $detach $program serve --name "$name" --data-dir "$PWD/$name" "$@" \
            >>"$name.log" 2>&1 </dev/null &
        echo $! >"$name.pid"
        echo started'
}

# Prints the end of a node's log.
log_tail() {
    on_host "$1" "${names[$1]}" <<<'tail -n 20 -- "$1.log" 2>/dev/null | sed "s/^/    /"' || true
}

process_runs() {
    on_host "$1" "${names[$1]}" <<<"$runs_program"'runs "$1"'
}

# --- Asking the nodes ---------------------------------------------------------------------------

# Asks /health/$1 of every node at once; fills `answers` by node: "200", or why not.
answers=()
ask_health() {
    local at told urls=()
    for at in "${!names[@]}"; do
        urls+=("http://${host_of[at]}:${http_port_of[at]}/health/$1")
    done
    told=$("$python" -c '
import concurrent.futures, json, sys, urllib.error, urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

def ask(url):
    try:
        with opener.open(url, timeout=2) as response:
            return str(response.status)
    except urllib.error.HTTPError as error:
        try:
            return str(json.load(error)["detail"])
        except (ValueError, KeyError, TypeError):
            return f"HTTP status {error.code}"
    except OSError as error:
        return "no answer: %s" % getattr(error, "reason", error)

with concurrent.futures.ThreadPoolExecutor(32) as pool:
    for answer in pool.map(ask, sys.argv[1:]):
        print(" ".join(answer.split()))
' "${urls[@]}")
    mapfile -t answers <<<"$told"
}

# Do all nodes name the same cluster? Two clusters come of two different lists of founders.
check_one_cluster() {
    local at urls=()
    for at in "${!names[@]}"; do
        urls+=("http://${host_of[at]}:${http_port_of[at]}/v1/cluster")
    done
    "$python" -c '
import json, sys, urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
found = {}
for url in sys.argv[1:]:
    with opener.open(url, timeout=5) as response:
        told = json.load(response)
    found.setdefault((told["cluster"], told["cluster_id"]), []).append(told["node"])
if len(found) > 1:
    sys.exit("; ".join(f"{name} {id} has {nodes}" for (name, id), nodes in found.items()))
' "${urls[@]}"
}

# --- The two things that this script does -------------------------------------------------------

start_all() {
    local at outcome status=0
    ask_health live
    printf '%s\n' "${hosts[@]}" >"$dir/hosts"
    for at in "${!names[@]}"; do
        if [[ ${answers[at]} == 200 ]]; then
            say "${names[at]} runs on ${host_of[at]}:${port_of[at]}"
        elif outcome=$(start_node "$at"); then
            say "${names[at]} $outcome on ${host_of[at]}:${port_of[at]}"
        else
            complain "${names[at]} cannot be started on ${host_of[at]}"
            status=1
        fi
    done
    return "$status"
}

wait_until_ready() {
    local deadline=$((SECONDS + timeout_s)) round=0 at missing
    while :; do
        ask_health ready
        missing=()
        for at in "${!names[@]}"; do
            [[ ${answers[at]} == 200 ]] || missing+=("$at")
        done
        ((${#missing[@]} > 0)) || return 0
        # A node that has ended will not become ready: no need to wait for the time limit.
        if ((++round % 4 == 0)); then
            for at in "${missing[@]}"; do
                [[ ${answers[at]} != 'no answer'* ]] || process_runs "$at" || {
                    answers[at]='its process has ended'
                    deadline=0
                }
            done
        fi
        if ((SECONDS >= deadline)); then
            for at in "${missing[@]}"; do
                complain "${names[at]} on ${host_of[at]}:${port_of[at]} is not ready:" \
                    "${answers[at]}; its log ends with"
                log_tail "$at" >&2
            done
            return 1
        fi
        sleep 0.5
    done
}

stop_all() {
    local at outcome status=0
    for at in "${!names[@]}"; do
        if outcome=$(stop_node "$at"); then
            say "${names[at]} $outcome"
        else
            complain "${names[at]} on ${host_of[at]} has not stopped: ${outcome:-no connection}"
            status=1
        fi
    done
    return "$status"
}

stop_node() {
    on_host "$1" "${names[$1]}" "$timeout_s" <<<"$runs_program"'
        name=$1 deadline=$((SECONDS + $2))
        if ! runs "$name"; then rm -f -- "$name.pid"; echo "was not running"; exit; fi
        pid=$(cat -- "$name.pid")
        kill "$pid"
        while runs "$name"; do
            if [ "$SECONDS" -ge "$deadline" ]; then echo "process $pid still runs"; exit 1; fi
            sleep 0.1
        done
        rm -f -- "$name.pid"
        echo stopped'
}

show_what_to_try() {
    local at
    say ''
    say "The cluster '$cluster' is ready:"
    for at in "${!names[@]}"; do
        say "  ${names[at]}  kv://${host_of[at]}:${port_of[at]}" \
            " http://${host_of[at]}:${http_port_of[at]}"
    done
    say ''
    say 'Try:'
    say "  export KVSTORE_URL=kv://$founders"
    say "  $kvstore status"
    say "  $kvstore put greeting hello && $kvstore get greeting"
    say "  curl http://${host_of[0]}:${http_port_of[0]}/v1/kv/greeting"
    say "  $0 --stop$(printf ' %q' "${called_with[@]}")"
}

called_with=(--dir "$dir" "$@")
parse_arguments "$@"
settle_arguments
if $stop; then
    stop_all
    exit
fi
start_all
wait_until_ready
if ! check_one_cluster; then
    complain 'the nodes are not one cluster: were they started with the same list of hosts?'
    exit 1
fi
show_what_to_try
