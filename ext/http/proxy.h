/*
 * proxy.h - the PROXY protocol, versions 1 and 2: the line or block in which a proxy passes on the client's address
 * (haproxy.org/download/3.0/doc/proxy-protocol.txt).  Input: bytes.  Output: an address, "more bytes needed", or an error.
 */
#ifndef PROXY_H
#define PROXY_H

#include <netinet/in.h>
#include <stddef.h>

union proxy_peer {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

enum {
    PROXY_PARTIAL = 0,
    PROXY_ABSENT = -1,    /* the connection does not begin with a PROXY header */
    PROXY_MALFORMED = -2,
};

/* Returns the length of the header, or one of the above.  Sets `peer` to the client's address; leaves it unchanged if the
 * connection is the proxy's own (LOCAL, UNKNOWN) or the address family is unknown. */
int proxy_parse(const char *buf, size_t len, union proxy_peer *peer);

#endif
