/* probe.c - see probe.h. */
#define _GNU_SOURCE
#include "probe.h"

#include <string.h>
#include <strings.h>

#include "clock.h"
#include "handoff.h"
#include "http/text.h"
#include "last_words.h"

void probe_publish(front *f, pages *table)
{
    pages_free(atomic_exchange(&f->published.incoming, table)); /* frees one that the loop has not fetched yet */
    front_ring(f);
}

void probe_renew(front *f, unsigned slot, int64_t nanoseconds)
{
    int64_t now;

    if (slot >= PAGES_SLOTS)
        return;
    do { /* again, if this thread was frozen in between */
        now = clock_now();
        atomic_store(&f->published.expires[slot], now + nanoseconds);
    } while (clock_now() - now > FRONT_GAP);
    if (slot == 0) {
        atomic_store_explicit(&f->published.lease, nanoseconds, memory_order_relaxed);
        atomic_store_explicit(&f->published.moved, 0, memory_order_relaxed);
        handoff_knock(f);
    }
}

/* Liveness expires later by the time of the freeze, up to the duration of its last renewal. */
static void move_liveness(front *f, int64_t gap)
{
    int64_t former = atomic_load(&f->published.expires[0]), wanted, from, most;

    do {
        if (former == 0)
            return;
        from = former > f->now ? former : f->now;
        most = from + atomic_load(&f->published.lease) - atomic_load(&f->published.moved);
        wanted = former + gap < most ? former + gap : most;
        if (wanted <= from)
            return;
    } while (!atomic_compare_exchange_strong(&f->published.expires[0], &former, wanted)); /* repeat if it has just been renewed */
    atomic_fetch_add(&f->published.moved, wanted - from);
}

/* Pages of other slots describe the time before the gap. */
void probe_freeze(front *f, int64_t gap)
{
    move_liveness(f, gap);
    for (size_t slot = 1; slot < PAGES_SLOTS; slot++)
        if (atomic_load(&f->published.expires[slot]) > f->now)
            atomic_store(&f->published.expires[slot], f->now);
}

/* ------------------------------------------------------------ the format wanted */

static void trim(const char **text, size_t *len)
{
    while (*len > 0 && (**text == ' ' || **text == '\t'))
        (*text)++, (*len)--;
    while (*len > 0 && ((*text)[*len - 1] == ' ' || (*text)[*len - 1] == '\t'))
        (*len)--;
}

/* The trimmed text before `separator`; *text and *len become the text after it.  False if nothing is left. */
static bool next_part(const char **text, size_t *len, char separator, const char **part, size_t *part_len)
{
    if (*len == 0)
        return false;
    const char *end = memchr(*text, separator, *len);
    size_t n = end != NULL ? (size_t)(end - *text) : *len;
    *part = *text;
    *part_len = n;
    trim(part, part_len);
    n += end != NULL;
    *text += n;
    *len -= n;
    return true;
}

/* "q=0", "q=0.", "q=0.000" */
static bool is_refusal(const char *parameter, size_t len)
{
    if (len < 3 || strncasecmp(parameter, "q=0", 3) != 0)
        return false;
    for (size_t i = 3; i < len; i++)
        if (parameter[i] != (i == 3 ? '.' : '0'))
            return false;
    return true;
}

/* Whether an Accept header names the media type with a quality other than 0 (RFC 9110 12.4.2). */
static bool accepts(const char *value, size_t len, const char *type)
{
    const char *range, *parameter;
    size_t range_len, parameter_len;

    while (next_part(&value, &len, ',', &range, &range_len)) {
        if (!next_part(&range, &range_len, ';', &parameter, &parameter_len) || parameter_len != strlen(type) ||
            strncasecmp(parameter, type, parameter_len) != 0)
            continue;
        bool refused = false;
        while (next_part(&range, &range_len, ';', &parameter, &parameter_len))
            refused |= is_refusal(parameter, parameter_len);
        if (!refused)
            return true;
    }
    return false;
}

/* Whether one of the query's parameters is `word`, or begins with `word` and '='. */
static bool has_parameter(const char *query, size_t len, const char *word)
{
    size_t n = strlen(word);

    for (const char *end = query + len, *next; query < end; query = next + 1) {
        if ((next = memchr(query, '&', (size_t)(end - query))) == NULL)
            next = end;
        if ((size_t)(next - query) >= n && memcmp(query, word, n) == 0 && (query + n == next || query[n] == '='))
            return true;
    }
    return false;
}

static enum pages_format format_wanted(const buffer *b, const http1_head *h)
{
    const char *query = b->data + h->query.pos;

    if (has_parameter(query, h->query.len, "format=json"))
        return PAGES_JSON;
    if (has_parameter(query, h->query.len, "verbose"))
        return PAGES_VERBOSE;
    for (unsigned i = 0; i < h->n_headers; i++) {
        const http1_header *x = &h->headers[i];
        if (x->value.len >= sizeof "application/json" - 1 && /* most probes send none, or a shorter one */
            TEXT_IS(b->data + x->name.pos, x->name.len, "accept") &&
            (accepts(b->data + x->value.pos, x->value.len, "application/health+json") ||
             accepts(b->data + x->value.pos, x->value.len, "application/json")))
            return PAGES_JSON;
    }
    return PAGES_TEXT;
}

/* -------------------------------------------------------------------- the answer */

static const pages_answer *page_answer(front *f, const page *p, enum pages_format format)
{
    enum pages_set set = PAGES_FRESH;

    if (atomic_load(&f->stage) >= FRONT_DRAINING && p->answers[PAGES_DRAINING][format].status != 0) {
        set = PAGES_DRAINING;
    } else if (f->now >= atomic_load_explicit(&f->published.expires[p->slot], memory_order_relaxed)) {
        set = PAGES_EXPIRED;
        count_add(&f->count.stale, 1);
        if (p->slot == 0 && last_words_are_wanted(f) && !f->published.mourned) {
            f->published.mourned = true;
            last_words_write(f, "liveness is failing"); /* the process may be killed because of the response that follows */
        }
    } else if (p->slot == 0) {
        f->published.mourned = false;
    }
    return &p->answers[set][format];
}

static void note_prober(front *f, const front_conn *c, const http1_head *h, unsigned status)
{
    const char *data = c->in->data, *agent = "";
    size_t agent_len = 0, path_len = h->path.len;
    uint8_t address[16] = {[10] = 0xff, [11] = 0xff};

    for (unsigned i = 0; i < h->n_headers; i++)
        if (TEXT_IS(data + h->headers[i].name.pos, h->headers[i].name.len, "user-agent")) {
            agent = data + h->headers[i].value.pos;
            agent_len = h->headers[i].value.len;
            break;
        }
    if (c->peer.any.sa_family == AF_INET)
        memcpy(address + 12, &c->peer.v4.sin_addr, 4);
    else if (c->peer.any.sa_family == AF_INET6)
        memcpy(address, &c->peer.v6.sin6_addr, 16);
    if (h->form == HTTP1_ASTERISK)
        tally_probe(&f->published.probers, address, agent, agent_len, "*", 1, status, f->now);
    else
        tally_probe(&f->published.probers, address, agent, agent_len, data + h->path.pos,
                    path_len > 1 && data[h->path.pos + path_len - 1] == '/' ? path_len - 1 : path_len, status, f->now);
}

size_t probe_answer(front *f, const front_conn *c, const http1_head *h, char out[PAGES_MAX_SIZE])
{
    static char empty[] = "Content-Length: 0\r\n", allow[] = "Allow: GET, HEAD, OPTIONS\r\nContent-Length: 0\r\n";
    static const pages_answer not_allowed = {405, sizeof allow - 1, 0, allow};
    static const pages_answer options = {200, sizeof empty - 1, 0, empty};
    static const pages_answer none = {503, sizeof empty - 1, 0, empty};
    const buffer *b = c->in;
    const pages_answer *a;
    char extra[64] = "";

    if (h->form == HTTP1_ASTERISK) {
        a = &options;
    } else if (h->method_id != HTTP1_GET && h->method_id != HTTP1_HEAD && h->method_id != HTTP1_OPTIONS) {
        a = &not_allowed;
    } else {
        a = page_answer(f, pages_find(f->published.pages, b->data + h->path.pos, h->path.len), format_wanted(b, h));
        if (a->status == 0)
            a = &none;
    }
    if (h->method_id == HTTP1_OPTIONS && h->form != HTTP1_ASTERISK) /* for *, the application may allow more */
        strcat(extra, "Allow: GET, HEAD, OPTIONS\r\n");
    if (c->close)
        strcat(extra, "Connection: close\r\n");
    else if (h->minor == 0)
        strcat(extra, "Connection: keep-alive\r\n");
    count_add(&f->count.probes, 1);
    note_prober(f, c, h, a->status);
    return pages_render(a, clock_date(f), extra, h->method_id == HTTP1_HEAD, out);
}

size_t front_probers(front *f, tally_prober *out, size_t max)
{
    return f->foreign ? 0 : tally_read_probers(&f->published.probers, out, max);
}
