/* Sequenced packets of a Unix socket: the kernel keeps the borders between messages, so there is no
 * length to forge and nothing to resynchronise. Uses no heap, since the worker calls it when it may
 * not ask the kernel for memory any more. */
#include "sys/frames.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * KG_FRAME_FDS)];
} control;

int kg_frame_pair(int ends[2], kg_error *err) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return kg_fail(err, KG_EIO, "socketpair: %s", strerror(errno));
    ends[0] = pair[0];
    ends[1] = pair[1];
    return KG_OK;
}

int kg_frame_send(int fd, const void *bytes, size_t n, const int *fds, size_t nfds, kg_error *err) {
    if (n > KG_FRAME_MAX || nfds > KG_FRAME_FDS)
        return kg_fail(err, KG_EOVERFLOW, "a frame of %zu bytes and %zu descriptors is too long", n,
                       nfds);
    control c;
    struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = n};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    if (nfds > 0) {
        memset(&c, 0, sizeof c);
        m.msg_control = c.bytes;
        m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
        struct cmsghdr *h = CMSG_FIRSTHDR(&m);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        memcpy(CMSG_DATA(h), fds, sizeof(int) * nfds);
    }
    ssize_t sent;
    do
        sent = sendmsg(fd, &m, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
        return kg_fail(err, KG_ECHILD, "the other process has gone");
    if (sent != (ssize_t)n)
        return kg_fail(err, KG_EIO, "sendmsg: %s", strerror(errno));
    return KG_OK;
}

static size_t take_descriptors(struct msghdr *m, int *fds, size_t max_fds) {
    size_t count = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        size_t here = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < here; i++, count++) {
            int one;
            memcpy(&one, CMSG_DATA(h) + i * sizeof(int), sizeof one);
            if (count < max_fds)
                fds[count] = one;
            else
                close(one);
        }
    }
    return count;
}

int kg_frame_recv(int fd, void *bytes, size_t max, size_t *n, int *fds, size_t max_fds,
                  size_t *nfds, kg_error *err) {
    control c;
    struct iovec part = {.iov_base = bytes, .iov_len = max};
    struct msghdr m = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = c.bytes,
                       .msg_controllen = sizeof c.bytes};
    ssize_t got;
    do
        got = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got == 0 || (got < 0 && errno == ECONNRESET))
        return kg_fail(err, KG_ECHILD, "the other process has gone");
    if (got < 0)
        return kg_fail(err, KG_EIO, "recvmsg: %s", strerror(errno));
    size_t count = take_descriptors(&m, fds, max_fds);
    if ((m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || count > max_fds) {
        for (size_t i = 0; i < count && i < max_fds; i++)
            close(fds[i]);
        return kg_fail(err, KG_EFORMAT, "a frame is longer than %zu bytes and %zu descriptors", max,
                       max_fds);
    }
    *n = (size_t)got;
    if (nfds)
        *nfds = count;
    return KG_OK;
}
