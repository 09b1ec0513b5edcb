/* What hostile code in a job would try, one attempt at a time: prints what became of
 * it. A test runs it as a job, and again where the rule is not, to show that the rule
 * is why it failed.
 *
 *   attack kernel           every attempt against the kernel, "NAME done" or "NAME refused ERROR"
 *   attack process PID      reach into a process, by number
 *   attack whoami           effective user, for a setuid copy of this program
 *   attack udp ADDR PORT N  one datagram of N bytes, with an interface as ADDR%IF
 *   attack flood ADDR PORT N  one datagram from each of N ports
 *   attack ping ADDR        one echo, "reply" or "silence"
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static long raw_socket(void) { return socket(AF_INET, SOCK_RAW, IPPROTO_RAW); }
static long icmp_socket(void) { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static long packet_socket(void) { return socket(AF_PACKET, SOCK_RAW, htons(3)); }
static long vsock(void) { return socket(40, SOCK_STREAM, 0); }
static long netfilter(void) { return socket(AF_NETLINK, SOCK_RAW, 12); }
static long ring(void) {
    char parameters[120] = {0};
    return syscall(425, 4, parameters);
}
static long bpf_map(void) {
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1};
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
}
static long key(void) { return syscall(SYS_add_key, "user", "attack", "x", 1, -2 /* of the process */); }
static long keyring(void) { return syscall(SYS_keyctl, 0 /* its id */, -2, 1); }
static long fault_handler(void) { return syscall(SYS_userfaultfd, O_CLOEXEC); }
static long counters(void) {
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .exclude_kernel = 1};
    return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}
static long mounting(void) { return mount("none", "/tmp", "tmpfs", 0, ""); }
static long mounting_anew(void) { return syscall(430 /* fsopen */, "tmpfs", 0); }
static long users(void) { return unshare(CLONE_NEWUSER); }
static long mounts(void) { return unshare(CLONE_NEWNS); }
static long cloned(void) {
    long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    return pid;
}
static long entering(void) {
    int fd = open("/proc/self/ns/uts", O_RDONLY);
    return fd < 0 ? fd : setns(fd, 0);
}
static long device(void) {
    char name[64];
    snprintf(name, sizeof name, "attack-device-%d", getpid());
    long made = mknod(name, S_IFBLK | 0600, makedev(7, 0));
    unlink(name);
    return made;
}
static long handle(void) {
    union { struct file_handle head; char room[256]; } of = {.head = {.handle_bytes = 128}};
    int id, root = open("/", O_RDONLY);
    if (name_to_handle_at(AT_FDCWD, "/", &of.head, &id, 0)) return -1;
    return open_by_handle_at(root, &of.head, O_RDONLY);
}
static long new_root(void) { return chroot("/"); }
static long root_user(void) { return syscall(SYS_setuid, 0); }
static long root_group(void) { return syscall(SYS_setgid, 0); }
static long kernel_log(void) { return syscall(SYS_syslog, 10 /* its size */, 0, 0); }
static long name(void) {
    char own[65];
    return gethostname(own, sizeof own) ? -1 : syscall(SYS_sethostname, own, strlen(own));
}
static long kernel_setting(void) {
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
    return fd;
}
/* Better than it has, whatever that is. */
static long better_priority(void) {
    return setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) - 1);
}

static const struct { const char *name; long (*attempt)(void); } kernel[] = {
    {"raw_socket", raw_socket}, {"icmp_socket", icmp_socket}, {"packet_socket", packet_socket},
    {"vsock", vsock}, {"netfilter", netfilter}, {"io_uring", ring}, {"bpf", bpf_map},
    {"add_key", key}, {"keyctl", keyring}, {"userfaultfd", fault_handler}, {"perf_event_open", counters},
    {"mount", mounting}, {"fsopen", mounting_anew}, {"user_namespace", users}, {"mount_namespace", mounts},
    {"clone_user_namespace", cloned}, {"setns", entering}, {"mknod", device}, {"open_by_handle_at", handle},
    {"chroot", new_root}, {"setuid", root_user}, {"setgid", root_group}, {"syslog", kernel_log},
    {"sethostname", name}, {"drop_caches", kernel_setting}, {"nice", better_priority},
};

static void say(const char *name, long result) {
    if (result >= 0) printf("%s done\n", name);
    else printf("%s refused %s\n", name, strerrorname_np(errno));
    fflush(stdout);
}

/* In a child each, since a success changes who the process is. */
static int try_kernel(void) {
    for (size_t n = 0; n < sizeof kernel / sizeof kernel[0]; n++) {
        pid_t pid = fork();
        if (pid == 0) {
            say(kernel[n].name, kernel[n].attempt());
            _exit(0);
        }
        waitpid(pid, 0, 0);
    }
    return 0;
}

static int try_process(pid_t pid) {
    char byte, path[64];
    struct iovec own = {&byte, 1}, other = {(void *)0x10000, 1};
    say("kill", kill(pid, 0));
    say("pidfd_open", syscall(SYS_pidfd_open, pid, 0));
    long read_other = process_vm_readv(pid, &own, 1, &other, 1, 0);
    /* Nothing is mapped there: being told so is as good as reading it. */
    say("process_vm_readv", read_other < 0 && errno == EFAULT ? 0 : read_other);
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    say("mem", open(path, O_RDONLY));
    long held = ptrace(PTRACE_SEIZE, pid, 0, 0);
    say("ptrace", held);
    return 0;
}

static int family_of(const char *text, int port, struct sockaddr_storage *to, socklen_t *length) {
    char plain[64];
    snprintf(plain, sizeof plain, "%s", text);
    char *scope = strchr(plain, '%');
    if (scope) *scope++ = 0;
    struct sockaddr_in *v4 = (void *)to;
    struct sockaddr_in6 *v6 = (void *)to;
    memset(to, 0, sizeof *to);
    if (inet_pton(AF_INET, plain, &v4->sin_addr) == 1) {
        v4->sin_port = htons(port);
        *length = sizeof *v4;
        return to->ss_family = AF_INET;
    }
    if (inet_pton(AF_INET6, plain, &v6->sin6_addr) != 1) exit(64);
    v6->sin6_port = htons(port);
    v6->sin6_scope_id = scope ? if_nametoindex(scope) : 0;
    *length = sizeof *v6;
    return to->ss_family = AF_INET6;
}

static int send_datagram(const char *address, int port, size_t size) {
    static char bytes[65000];
    struct sockaddr_storage to;
    socklen_t length;
    int fd = socket(family_of(address, port, &to, &length), SOCK_DGRAM, 0), yes = 1, any = 0;
    setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes);
    setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &any, sizeof any);
    memset(bytes, 'x', sizeof bytes);
    say("sent", sendto(fd, bytes, size < sizeof bytes ? size : sizeof bytes, 0, (void *)&to, length));
    return 0;
}

/* Each is a connection to a kernel that keeps count of them. */
static int flood(const char *address, int port, int count) {
    struct sockaddr_storage to;
    socklen_t length;
    int family = family_of(address, port, &to, &length), sent = 0;
    for (int n = 0; n < count; n++) {
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(20000 + n)};
        int fd = socket(family, SOCK_DGRAM, 0);
        if (!bind(fd, (void *)&from, sizeof from) && sendto(fd, "x", 1, 0, (void *)&to, length) == 1) sent++;
        close(fd);
    }
    return printf("sent %d\n", sent) < 0;
}

static int echo(const char *address) {
    struct sockaddr_storage to;
    socklen_t length;
    int family = family_of(address, 0, &to, &length);
    int fd = socket(family, SOCK_DGRAM, family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6);
    if (fd < 0) {
        say("echo", fd);
        return 0;
    }
    char packet[64] = {family == AF_INET ? ICMP_ECHO : ICMP6_ECHO_REQUEST}, answer[128];
    if (sendto(fd, packet, sizeof packet, 0, (void *)&to, length) < 0) {
        say("echo", -1);
        return 0;
    }
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    puts(poll(&wait, 1, 2000) == 1 && recv(fd, answer, sizeof answer, 0) > 0 ? "reply" : "silence");
    return 0;
}

int main(int count, char **words) {
    if (count == 2 && !strcmp(words[1], "kernel")) return try_kernel();
    if (count == 3 && !strcmp(words[1], "process")) return try_process(atoi(words[2]));
    if (count == 2 && !strcmp(words[1], "whoami")) return printf("%d\n", geteuid()) < 0;
    if (count == 5 && !strcmp(words[1], "udp")) return send_datagram(words[2], atoi(words[3]), atoi(words[4]));
    if (count == 5 && !strcmp(words[1], "flood")) return flood(words[2], atoi(words[3]), atoi(words[4]));
    if (count == 3 && !strcmp(words[1], "ping")) return echo(words[2]);
    return 64;
}
