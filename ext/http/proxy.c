/* proxy.c - see proxy.h. */
#include "proxy.h"

#include <arpa/inet.h>
#include <stdint.h>
#include <string.h>

#define V1_MAX 107 /* bytes, including CRLF (2.1) */

static const char v2_signature[12] = "\r\n\r\n\0\r\nQUIT\n";

/* The next word of a version 1 line; false at its end, or if words are not separated by exactly one space. */
static int next_word(const char **at, const char *end, char *word, size_t size)
{
    const char *begin = *at, *space = memchr(begin, ' ', (size_t)(end - begin));
    size_t len = (size_t)((space != NULL ? space : end) - begin);

    if (len == 0 || len >= size || memchr(begin, '\0', len) != NULL) /* a NUL would end the string before the word ends */
        return 0;
    memcpy(word, begin, len);
    word[len] = '\0';
    *at = space != NULL ? space + 1 : end;
    return 1;
}

static int port_of(const char *text)
{
    int port = 0;

    for (const char *p = text; *p != '\0'; p++) {
        if (*p < '0' || *p > '9' || p - text > 4)
            return -1;
        port = port * 10 + (*p - '0');
    }
    return port > 65535 || (text[0] == '0' && text[1] != '\0') ? -1 : port;
}

static int parse_v1(const char *buf, size_t len, union proxy_peer *peer)
{
    const char *end = memchr(buf, '\n', len < V1_MAX ? len : V1_MAX);
    char word[INET6_ADDRSTRLEN], source[INET6_ADDRSTRLEN], target[INET6_ADDRSTRLEN], port[8], target_port[8];
    union proxy_peer client = {.any.sa_family = AF_UNSPEC};

    if (end == NULL)
        return len < V1_MAX ? PROXY_PARTIAL : PROXY_MALFORMED;
    if (end[-1] != '\r')
        return PROXY_MALFORMED;
    const char *at = buf + 6;
    int total = (int)(end - buf) + 1;
    end--;
    if (!next_word(&at, end, word, sizeof word))
        return PROXY_MALFORMED;
    if (strcmp(word, "UNKNOWN") == 0)
        return total; /* the rest of the line must be ignored (2.1) */
    if (!next_word(&at, end, source, sizeof source) || !next_word(&at, end, target, sizeof target) ||
        !next_word(&at, end, port, sizeof port) || !next_word(&at, end, target_port, sizeof target_port) || at != end ||
        end[-1] == ' ' || port_of(port) < 0 || port_of(target_port) < 0)
        return PROXY_MALFORMED;
    if (strcmp(word, "TCP4") == 0) {
        struct in_addr ignored;
        client.v4.sin_family = AF_INET;
        client.v4.sin_port = htons((uint16_t)port_of(port));
        if (inet_pton(AF_INET, source, &client.v4.sin_addr) != 1 || inet_pton(AF_INET, target, &ignored) != 1)
            return PROXY_MALFORMED;
    } else if (strcmp(word, "TCP6") == 0) {
        struct in6_addr ignored;
        client.v6.sin6_family = AF_INET6;
        client.v6.sin6_port = htons((uint16_t)port_of(port));
        if (inet_pton(AF_INET6, source, &client.v6.sin6_addr) != 1 || inet_pton(AF_INET6, target, &ignored) != 1)
            return PROXY_MALFORMED;
    } else {
        return PROXY_MALFORMED;
    }
    *peer = client;
    return total;
}

static int parse_v2(const char *buf, size_t len, union proxy_peer *peer)
{
    if (len < 16)
        return PROXY_PARTIAL;
    const unsigned char *b = (const unsigned char *)buf;
    unsigned version = b[12] >> 4, command = b[12] & 15, family = b[13], size = (unsigned)b[14] << 8 | b[15];

    if (version != 2 || command > 1 || size > 1024) /* addresses and a few extensions (2.2); anything longer is refused */
        return PROXY_MALFORMED;
    if (len < 16 + size)
        return PROXY_PARTIAL;
    if (command == 1 && family == 0x11) {
        if (size < 12)
            return PROXY_MALFORMED;
        union proxy_peer client = {.v4.sin_family = AF_INET};
        memcpy(&client.v4.sin_addr, b + 16, 4);
        memcpy(&client.v4.sin_port, b + 24, 2);
        *peer = client;
    } else if (command == 1 && family == 0x21) {
        if (size < 36)
            return PROXY_MALFORMED;
        union proxy_peer client = {.v6.sin6_family = AF_INET6};
        memcpy(&client.v6.sin6_addr, b + 16, 16);
        memcpy(&client.v6.sin6_port, b + 48, 2);
        *peer = client;
    }
    return (int)(16 + size);
}

int proxy_parse(const char *buf, size_t len, union proxy_peer *peer)
{
    size_t n = len < 12 ? len : 12;

    if (memcmp(buf, v2_signature, n) == 0 && len > 0)
        return len < 12 ? PROXY_PARTIAL : parse_v2(buf, len, peer);
    n = len < 6 ? len : 6;
    if (memcmp(buf, "PROXY ", n) == 0)
        return len < 6 ? PROXY_PARTIAL : parse_v1(buf, len, peer);
    return PROXY_ABSENT;
}
