/* Takes memory for the largest answer before anything is locked: a CPU's worker gets no more of it
 * later. */
#include "worker/serve.h"

#include <unistd.h>

#include "worker/protocol.h"

void kg_talk_init(kg_talk *t, int socket) {
    t->socket = socket;
    t->nfds = 0;
    t->sealed = false;
    kg_buf_init(&t->reply, KG_FRAME_MAX);
    kg_buf_reserve(&t->reply, 16 + 8 * (size_t)KG_W_MAX_TIMED + 4096);
    kg_buf_clear(&t->reply);
}

int kg_talk_finish(const kg_talk *t, const char *what, kg_error *err) {
    if (t->in.status == KG_OK && t->in.pos == t->in.len)
        return KG_OK;
    return kg_fail(err, KG_EFORMAT, "%s is malformed", what);
}

/* Answers one request; false when the talk is over. */
static bool once(kg_talk *t, kg_answer answer, void *worker) {
    size_t n;
    if (kg_frame_recv(t->socket, t->request, sizeof t->request, &n, t->fds, KG_FRAME_FDS, &t->nfds,
                      NULL) != KG_OK)
        return false;
    kg_error err = {0};
    kg_reader_init(&t->in, t->request, n);
    uint32_t kind = kg_get_u32(&t->in), number = kg_get_u32(&t->in);
    kg_buf_clear(&t->reply);
    kg_put_u32(&t->reply, KG_W_OK);
    kg_put_u32(&t->reply, number);
    int rc = answer(worker, t, kind, &err);
    if (rc != KG_OK) {
        kg_buf_clear(&t->reply);
        kg_put_u32(&t->reply, KG_W_FAILED);
        kg_put_u32(&t->reply, number);
        kg_put_u32(&t->reply, (uint32_t)-rc);
        kg_put_str(&t->reply, err.msg);
    }
    for (size_t i = 0; !t->sealed && i < t->nfds; i++)
        close(t->fds[i]);
    return kg_frame_send(t->socket, t->reply.data, t->reply.len, NULL, 0, NULL) == KG_OK;
}

void kg_talk_serve(kg_talk *t, kg_answer answer, void *worker) {
    while (once(t, answer, worker))
        ;
}
