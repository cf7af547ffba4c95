/* Frames over a pair of connected sockets: one message in, the same message out, with descriptors
 * beside it. What kgen and its worker speak (worker/protocol.h). Nothing is trusted of what comes
 * in: a frame that is too long, or has more descriptors than were asked for, is an error, and the
 * descriptors are closed. */
#ifndef KG_SYS_FRAMES_H
#define KG_SYS_FRAMES_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { KG_FRAME_MAX = 96 << 10, KG_FRAME_FDS = 96 };

/* Both ends are close-on-exec. */
int kg_frame_pair(int ends[2], kg_error *err);
/* The descriptors stay the caller's. KG_ECHILD when the other end is closed. */
int kg_frame_send(int fd, const void *bytes, size_t n, const int *fds, size_t nfds, kg_error *err);
/* Waits for one frame. KG_ECHILD when the other end is closed. fds (may be NULL with max_fds 0)
 * become the caller's, close-on-exec. */
int kg_frame_recv(int fd, void *bytes, size_t max, size_t *n, int *fds, size_t max_fds,
                  size_t *nfds, kg_error *err);

#endif
