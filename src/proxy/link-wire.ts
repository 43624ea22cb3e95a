import { z } from 'zod';
import { linkLimits } from './link-limits.ts';
import type { ProxyStatus } from './port.ts';

/**
 * What a proxy on another machine says to its server, over TLS: `POST /v1/link/<call>`. Joining
 * shows a token; everything later shows the certificate that joining gave.
 */
const address = z.union([z.ipv4(), z.ipv6()]);
const text = z.string().min(1).max(255);
const pem = z.string().max(linkLimits.pemBytesMax);

/** Where hosts and the server reach the proxy. */
const places = {
  addresses: z.array(address).max(linkLimits.addressesMax),
  callAddress: address,
  callPort: z.int().min(1).max(65_535),
};

export const enrolCall = z.object({
  /** Id and secret of the token; its fingerprint has done its work before. */
  tokenId: text,
  secret: text,
  name: text,
  request: pem,
  labels: z.record(text, z.string().max(255)),
  wire: z.int(),
  version: text,
  nowMs: z.int(),
});
export type EnrolCall = z.infer<typeof enrolCall>;

export interface EnrolAnswer {
  readonly name: string;
  readonly certificate: string;
  readonly authority: string;
}

const status = z.custom<ProxyStatus>(
  (value) =>
    z
      .looseObject({
        name: text,
        version: text,
        wire: z.int(),
        startedMs: z.int(),
        nowMs: z.int(),
        vault: z.looseObject({ id: text, path: z.string() }),
        nfs: z.looseObject({ port: z.int() }),
        clones: z.int(),
        exports: z.int(),
        jobs: z.int(),
        load: z.number(),
        cache: z.looseObject({ usedBytes: z.number(), boundBytes: z.number() }),
        networks: z.array(z.string()).max(linkLimits.addressesMax),
        space: z.looseObject({ totalBytes: z.number(), freeBytes: z.number() }),
      })
      .safeParse(value).success,
  'a status is expected',
);

export const heartbeatCall = z.object({ status, ...places });
export type HeartbeatCall = z.infer<typeof heartbeatCall>;

export interface HeartbeatAnswer {
  readonly state: 'connected' | 'draining';
  /** Why it gets no work, and what to do; null: it gets some. */
  readonly problem: string | null;
}

export const renewCall = z.object({ request: pem });
export interface RenewAnswer {
  readonly certificate: string;
}
