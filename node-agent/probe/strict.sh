#!/bin/sh
# Proves from inside a sandbox what profile `strict` promises: rows 1 to 19, 27,
# 29 and 30 of the isolation table. Plain shell (busybox or GNU), to be run as a
# job's step. One line per check: PASS|FAIL|NOT_GUARANTEED row name detail.
# Ends with 1 when anything failed.

failed=0
say() { echo "$1 $2 $3 $4"; [ "$1" = FAIL ] && failed=1; return 0; }
pass() { say PASS "$1" "$2" "$3"; }
fail() { say FAIL "$1" "$2" "$3"; }
open() { say NOT_GUARANTEED "$1" "$2" "$3"; }
# check ROW NAME DETAIL COMMAND..: passes when the command succeeds.
check() { row=$1 name=$2 detail=$3; shift 3; if "$@" >/dev/null 2>&1; then pass "$row" "$name" "$detail"; else fail "$row" "$name" "$detail"; fi; }
# denied ROW NAME DETAIL COMMAND..: passes when the command is refused.
denied() { row=$1 name=$2 detail=$3; shift 3; if "$@" >/dev/null 2>&1; then fail "$row" "$name" "$detail was possible"; else pass "$row" "$name" "$detail is refused"; fi; }
have() { command -v "$1" >/dev/null 2>&1; }
status() { while read -r key value; do [ "$key" = "$1:" ] && echo "$value" && return; done </proc/self/status; }
# First file that exists, its content.
value() { for f in "$@"; do [ -r "$f" ] && cat "$f" && return; done; return 1; }
number() { case $1 in '' | *[!0-9]*) return 1 ;; esac; }

# 1 non-root
uid=$(id -u)
[ "$uid" -ne 0 ] && pass 1 non_root "uid $uid" || fail 1 non_root "uid 0"

# 2 no capabilities
caps=
for set in CapInh CapPrm CapEff CapBnd CapAmb; do case $(status $set) in 0000000000000000) ;; *) caps="$caps $set=$(status $set)" ;; esac; done
[ -z "$caps" ] && pass 2 no_capabilities "all five sets are empty" || fail 2 no_capabilities "$caps"

# 3 no escalation
[ "$(status NoNewPrivs)" = 1 ] && pass 3 no_escalation "NoNewPrivs is 1" || fail 3 no_escalation "NoNewPrivs is '$(status NoNewPrivs)'"

# 4 seccomp
[ "$(status Seccomp)" = 2 ] && pass 4 seccomp "filter mode" || fail 4 seccomp "Seccomp is '$(status Seccomp)'"
if have unshare; then
    denied 4 seccomp "unshare -U" unshare -U true
    denied 4 seccomp "unshare -m" unshare -m true
fi
have mount && denied 4 seccomp "mounting a tmpfs" mount -t tmpfs none /tmp

# 5 read-only root
probe_root() { (: >/.longshore-probe) 2>/dev/null; }
denied 5 read_only_rootfs "writing to /" probe_root

# 6 tmpfs: no programs from /tmp, bounded
tmp_line=$(grep ' /tmp tmpfs ' /proc/mounts)
case $tmp_line in
*noexec*size=* | *size=*noexec*) pass 6 tmpfs "noexec and sized" ;;
*) fail 6 tmpfs "/tmp is '$tmp_line'" ;;
esac
if (echo '#!/bin/sh' >/tmp/.longshore-probe && chmod +x /tmp/.longshore-probe) 2>/dev/null; then
    denied 6 tmpfs "running a program from /tmp" /tmp/.longshore-probe
    rm -f /tmp/.longshore-probe
    writable=1
else
    fail 6 tmpfs "/tmp is not writable"
    writable=
fi
tmp_kib=$(echo "$tmp_line" | sed 's/.*size=\([0-9]*\)k.*/\1/')
if [ -n "$writable" ] && number "$tmp_kib" && [ "$tmp_kib" -le 614400 ]; then
    denied 6 tmpfs "writing past the size of /tmp" dd if=/dev/zero of=/tmp/.longshore-fill bs=1024 count=$((tmp_kib + 64))
    rm -f /tmp/.longshore-fill
fi

# 7 process limit
pids=$(value /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max)
if number "$pids"; then pass 7 process_limit "$pids processes"; elif [ "$pids" = max ]; then fail 7 process_limit "no limit"; else open 7 process_limit "the control group is not visible"; fi

# 8 memory limit
memory=$(value /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes)
total_kib=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
if number "$memory" && [ "$memory" -lt $((total_kib * 1024)) ]; then
    pass 8 memory_limit "$memory bytes"
elif [ -n "$memory" ]; then fail 8 memory_limit "limit is $memory"; else open 8 memory_limit "the control group is not visible"; fi

# 9 no swap
if swap=$(value /sys/fs/cgroup/memory.swap.max); then
    [ "$swap" = 0 ] && pass 9 no_swap "swap is 0" || fail 9 no_swap "swap is $swap"
elif both=$(value /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes); then
    [ "$both" = "$memory" ] && pass 9 no_swap "memory and swap together are the memory" || fail 9 no_swap "memory+swap is $both"
else
    open 9 no_swap "the kernel does not count swap"
fi

# 10 everything in memory fits the memory
in_memory=0 unsized=
while read -r _ where type options _; do
    [ "$type" = tmpfs ] || continue
    case $where in /tmp | /home/runner | /dev/shm | /run | /var/tmp) ;; *) continue ;; esac
    kib=$(echo "$options" | sed -n 's/.*size=\([0-9]*\)k.*/\1/p')
    if number "$kib"; then in_memory=$((in_memory + kib)); else unsized="$unsized $where"; fi
done </proc/mounts
if [ -n "$unsized" ]; then fail 10 tmpfs_in_memory "no size:$unsized"
elif number "$memory" && [ $((in_memory * 1024)) -le "$memory" ]; then pass 10 tmpfs_in_memory "$in_memory KiB of tmpfs in $((memory / 1024)) KiB"
else fail 10 tmpfs_in_memory "$in_memory KiB of tmpfs"; fi

# 11 cpu limit
quota=$(value /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us)
case $quota in
'') open 11 cpu_limit "the control group is not visible" ;;
max* | -1) fail 11 cpu_limit "no limit" ;;
*) pass 11 cpu_limit "quota $quota" ;;
esac

# 12 ulimits
[ "$(ulimit -c)" = 0 ] && pass 12 ulimits "no core files" || fail 12 ulimits "core $(ulimit -c)"
number "$(ulimit -n)" && pass 12 ulimits "$(ulimit -n) files" || fail 12 ulimits "files $(ulimit -n)"

# 13 no host folders
# Files that podman writes for a container when its image lacks the user; the host's own have another origin.
written_for_it() { while read -r _ _ _ origin target _; do [ "$target" = "$1" ] && case $origin in */userdata/passwd | */userdata/group) return 0 ;; esac; done </proc/self/mountinfo; return 1; }
foreign=
while read -r source where type _; do
    case $source in /dev/*) ;; *) continue ;; esac
    [ "$type" = devpts ] && continue
    case $where in
    /etc/resolv.conf | /etc/hostname | /etc/hosts | /sbin/docker-init | /dev/init | /run/podman-init | /run/.containerenv | /home/runner/bin | /home/runner/externals | /home/runner/_work) ;;
    /etc/passwd | /etc/group) written_for_it "$where" || foreign="$foreign $where" ;;
    *) foreign="$foreign $where" ;;
    esac
done </proc/mounts
[ -z "$foreign" ] && pass 13 no_host_mounts "only the engine's own files and volumes" || fail 13 no_host_mounts "$foreign"

# 14 no engine socket
sockets=
for s in /var/run/docker.sock /run/docker.sock /run/podman/podman.sock /run/containerd/containerd.sock /run/crio/crio.sock; do [ -e $s ] && sockets="$sockets $s"; done
[ -z "$sockets" ] && pass 14 no_engine_socket "none" || fail 14 no_engine_socket "$sockets"

# 15 masked files
readable=
for f in /proc/kallsyms /proc/interrupts /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/modules; do
    [ -e $f ] && [ "$(head -c1 $f 2>/dev/null | wc -c)" -ne 0 ] && readable="$readable $f"
done
for d in /sys/firmware /sys/devices/virtual/powercap /sys/devices/system/cpu/cpu*/thermal_throttle /proc/acpi /proc/scsi /proc/asound; do
    [ -d "$d" ] && [ -n "$(ls -A "$d" 2>/dev/null)" ] && readable="$readable $d"
done
[ -z "$readable" ] && pass 15 masked_proc "empty or absent" || fail 15 masked_proc "$readable"

# 16 read-only kernel settings
probe_panic() { echo 0 >/proc/sys/kernel/panic; }
probe_sysrq() { echo h >/proc/sysrq-trigger; }
denied 16 read_only_proc_sys "writing /proc/sys" probe_panic
denied 16 read_only_proc_sys "writing /proc/sysrq-trigger" probe_sysrq

# 17 own namespaces
[ "$(cat /proc/2/comm 2>/dev/null)" != kthreadd ] && pass 17 own_namespaces "no host processes" || fail 17 own_namespaces "the host's processes are visible"
[ "$(cat /proc/sys/kernel/hostname)" = runner ] && pass 17 own_namespaces "own host name" || fail 17 own_namespaces "host name $(cat /proc/sys/kernel/hostname)"
others=
while read -r device _; do case $device in lo:* | eth0:* | Inter-* | face* | tunl0:* | sit0:* | ip6tnl0:* | gre0:* | gretap0:* | erspan0:* | ip_vti0:* | ip6_vti0:* | ip6gre0:*) ;; *) others="$others $device" ;; esac; done </proc/net/dev
[ -z "$others" ] && pass 17 own_namespaces "own network" || fail 17 own_namespaces "network devices:$others"
[ "$(wc -l </proc/sysvipc/shm)" -le 1 ] && pass 17 own_namespaces "own shared memory" || fail 17 own_namespaces "foreign shared memory"

# 18 own control group namespace
groups= libpod=
while IFS=: read -r _ _ path; do case $path in / | '') ;; */libpod-*) libpod=1 ;; *) groups="$groups $path" ;; esac; done </proc/self/cgroup
if [ -n "$groups" ]; then fail 18 own_cgroup_namespace "$groups"
elif [ -n "$libpod" ]; then open 18 own_cgroup_namespace "podman keeps the host's on control groups version 1: the sandbox sees the path of its own group"
else pass 18 own_cgroup_namespace "every group is /"; fi

# 19 no devices
have mknod && denied 19 no_devices "making a block device" mknod /home/runner/_work/.longshore-probe b 254 0
blocks=
for d in /dev/*; do [ -b "$d" ] && blocks="$blocks $d"; done
[ -z "$blocks" ] && pass 19 no_devices "no block device" || fail 19 no_devices "$blocks"

# 27 log cap: only the host sees what is kept
open 27 log_cap "the engine keeps the output outside the sandbox; the host checks it"

# 29 nothing of an earlier job; leaves a mark that the next one must not see
marks=
for d in /tmp /dev/shm /home/runner /home/runner/_work; do
    [ -e "$d/.longshore-mark" ] && marks="$marks $d"
    (echo mark >"$d/.longshore-mark") 2>/dev/null
done
[ -z "$marks" ] && pass 29 complete_removal "no mark of an earlier job" || fail 29 complete_removal "marks in$marks"

# 30 init
init=$(cat /proc/1/comm 2>/dev/null)
case $init in docker-init | tini | catatonit | podman-init | init) pass 30 init_process "$init" ;; *) fail 30 init_process "process 1 is '$init'" ;; esac
(sleep 0.2 &)
sleep 1
zombies=0
for f in /proc/[0-9]*/stat; do
    read -r _ _ state parent _ <"$f" 2>/dev/null || continue
    [ "$state" = Z ] && [ "$parent" = 1 ] && zombies=$((zombies + 1))
done
[ "$zombies" -eq 0 ] && pass 30 init_process "orphans are reaped" || fail 30 init_process "$zombies zombies"

exit $failed
