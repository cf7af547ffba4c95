/* Why a memfd and not shared memory of a name: containers give that 64 MB, and a name is one more
 * thing that somebody else can open. A worker cannot shrink a file under the judge (that would
 * fault the judge) nor map an input writable, because the file is sealed.
 *
 * The guard pattern is a NaN in every floating type, so that what is read from outside shows in the
 * result, and has 25 secret bits, so that nothing writes it back by chance. */
#define _GNU_SOURCE
#include "tune/slots.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

enum { PAGE = 4096, FRONT = PAGE };

uint64_t kg_random(void) {
    uint64_t bits = 0;
    if (getrandom(&bits, sizeof bits, GRND_NONBLOCK) != (ssize_t)sizeof bits) {
        /* Only before the kernel has gathered entropy, at boot. */
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        bits = (uint64_t)now.tv_nsec * 0x9e3779b97f4a7c15u ^ (uint64_t)(uintptr_t)&now;
    }
    return bits;
}

/* Each 16 bits are a NaN as float16 and bfloat16, each 32 as float32, all 64 as float64. */
static uint64_t guard_pattern(void) {
    uint64_t r = kg_random();
    return 0x7ff17f817f817f81u | (r & 0x000e007e007e007eu);
}

void kg_slot_init(kg_slot *s, bool writable) {
    *s = (kg_slot){.fd = -1, .writable = writable, .guard = guard_pattern()};
}

void kg_slot_close(kg_slot *s) {
    if (s->map)
        munmap(s->map, s->room);
    if (s->fd >= 0)
        close(s->fd);
    kg_slot_init(s, s->writable);
}

static int make(kg_slot *s, size_t room, kg_error *err) {
    kg_slot_close(s);
    int fd = memfd_create("kgen", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return kg_fail(err, KG_EIO, "memfd_create: %s", strerror(errno));
    if (ftruncate(fd, (off_t)room) != 0) {
        int saved = errno;
        close(fd);
        return kg_fail(err, KG_ENOMEM, "ftruncate of a buffer to %zu bytes: %s", room,
                       strerror(saved));
    }
    char *map = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | (s->writable ? 0 : F_SEAL_FUTURE_WRITE);
    if (map == MAP_FAILED || fcntl(fd, F_ADD_SEALS, seals | F_SEAL_SEAL) != 0) {
        int saved = errno;
        if (map != MAP_FAILED)
            munmap(map, room);
        close(fd);
        return kg_fail(err, KG_ENOMEM, "a buffer of %zu bytes: %s", room, strerror(saved));
    }
    s->fd = fd;
    s->map = map;
    s->room = room;
    return KG_OK;
}

/* The pattern at file offset i is the same whatever the band: byte i % 8 of the word. */
static void fill(const kg_slot *s, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++)
        s->map[i] = (char)(s->guard >> (i % 8 * 8));
}

int kg_slot_place(kg_slot *s, size_t bytes, size_t align, kg_error *err) {
    if (align == 0 || align > 256 || (align & (align - 1)) != 0)
        return kg_fail(err, KG_EINVAL, "an alignment of %zu bytes", align);
    if (bytes > (size_t)1 << 45)
        return kg_fail(err, KG_EOVERFLOW, "a buffer of %zu bytes", bytes);
    size_t cycle = align < 256 ? 2 * align : 256;
    size_t used = (FRONT + bytes + cycle + PAGE - 1) / PAGE * PAGE;
    if (used > s->room) {
        int rc = make(s, used, err);
        if (rc != KG_OK)
            return rc;
    }
    size_t skew = align < 256 ? align : 0;
    s->offset = (used - bytes - skew) / cycle * cycle + skew;
    s->bytes = bytes;
    s->used = used;
    fill(s, 0, s->offset);
    fill(s, s->offset + bytes, used);
    return KG_OK;
}

char *kg_slot_data(const kg_slot *s) {
    return s->map + s->offset;
}

static bool band_whole(const kg_slot *s, size_t begin, size_t end, int64_t *where) {
    for (size_t i = begin; i < end; i++)
        if (s->map[i] != (char)(s->guard >> (i % 8 * 8))) {
            *where = (int64_t)i - (int64_t)s->offset;
            return false;
        }
    return true;
}

bool kg_slot_guards_whole(const kg_slot *s, int64_t *where) {
    /* After the end first: that is where loops go wrong. */
    return band_whole(s, s->offset + s->bytes, s->used, where) &&
           band_whole(s, 0, s->offset, where);
}
