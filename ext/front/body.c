/* body.c - see body.h. */
#include "body.h"

#include <errno.h>
#include <stdlib.h>

#include "pace.h"

bool buffers_reserve(front *f, size_t more)
{
    uint64_t yielding = atomic_load(&f->room.gathering);

    if (atomic_fetch_add(&f->room.buffered, more) + more <= f->limits.buffer_size + yielding)
        return true;
    buffers_return(f, more);
    return false;
}

int buffer_grow(front *f, front_conn *c, size_t wanted, size_t max)
{
    buffer *b = c->in;
    size_t cap = b->cap * 2 > wanted ? b->cap * 2 : wanted;

    if (cap > max)
        cap = max;
    if (cap <= b->cap)
        return -ENOBUFS;
    size_t more = cap - b->cap;
    if (!buffers_reserve(f, more))
        return -ENOMEM;
    if ((b = realloc(b, sizeof *b + cap)) == NULL) {
        buffers_return(f, more);
        return -ENOMEM;
    }
    b->cap = cap;
    c->in = b;
    return FRONT_OK;
}

void buffer_keep_head(front *f, front_conn *c)
{
    size_t cap = c->in->cap, size = c->in->head_len;
    buffer *b = realloc(c->in, sizeof *b + size);

    if (b == NULL)
        return;
    if (cap > BUFFER_SIZE)
        buffers_return(f, cap - (size > BUFFER_SIZE ? size : BUFFER_SIZE));
    b->cap = b->len = b->raw = size;
    b->body_len = c->body_given = 0;
    c->in = b;
}

int body_decode(front *f, front_conn *c)
{
    buffer *b = c->in;
    size_t consumed = b->len - b->raw, produced = 0;

    if (c->chunked) {
        int rv = http1_chunked_decode(&c->decoder, b->data + b->raw, &consumed, b->data + b->head_len + b->body_len, &produced);
        if (rv < 0)
            return FRONT_E_CHUNK;
        c->complete = rv == 1;
    } else {
        if (consumed > c->body_left)
            consumed = (size_t)c->body_left;
        produced = consumed;
        c->body_left -= consumed;
        c->complete = c->body_left == 0;
    }
    b->raw += consumed;
    b->body_len += produced;
    c->body_read += produced;
    if (c->body_read > f->limits.max_body_size)
        return FRONT_E_TOO_LARGE;
    if (!c->complete) /* everything was consumed: close the gap left by the framing */
        b->len = b->raw = b->head_len + b->body_len;
    return FRONT_OK;
}

bool body_keeps_up(front *f, front_conn *c)
{
    if (!pace_is_kept(f, c->body_read - c->body_mark, f->limits.body_timeout))
        return false;
    c->body_mark = c->body_read;
    return true;
}
