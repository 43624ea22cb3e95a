import { z } from 'zod';
import { proxyStatus } from '../catalog/schema.ts';
import { flag, list, named, timeMs } from '../lib/fields.ts';
import { linkLimits } from '../proxy/link-limits.ts';

/** What people say to and hear of proxies. See recovery/schema.ts for the conventions. */

/** It stands in paths of exports and on hosts' screens. */
export const proxyName = z
  .string('must be a name, as text')
  .regex(
    /^[A-Za-z0-9][A-Za-z0-9-]{0,39}$/,
    'must be 1 to 40 letters, digits and dashes, and begin with no dash',
  );

const place = z.string('must be a name').min(1, 'must not be empty').max(255);
const labels = z
  .record(
    z.string().regex(/^[A-Za-z0-9][\w./-]{0,62}$/, 'must be a key of letters, digits and ._/-'),
    z.string().max(255, 'must be at most 255 characters long'),
    'must be keys with values',
  )
  .refine(
    (all) => Object.keys(all).length <= linkLimits.labelsMax,
    `must be at most ${linkLimits.labelsMax} labels`,
  );
export const proxyLabels = labels;

export const proxyState = z.enum(['connected', 'disconnected', 'draining']);

export const proxyView = z.object({
  name: z.string(),
  kind: z.enum(['embedded', 'enrolled']).describe('embedded: started beside the server.'),
  state: proxyState,
  problem: z.string().nullable().describe('Why it gets no work although it answers.'),
  draining: z.boolean(),
  addresses: list(z.string()).describe('As hypervisor hosts reach it, the preferred first.'),
  calledAt: z.string().nullable().describe('Where the server calls it; null: on its socket.'),
  labels: z.record(z.string(), z.string()),
  onlyFor: list(z.string()).describe('Hypervisors, clusters and hosts: it serves these alone.'),
  neverFor: list(z.string()),
  devices: list(named).describe('Whose savesets it can serve.'),
  fingerprint: z.string().nullable().describe('SHA-256 of its certificate.'),
  certificateEndsMs: timeMs.nullable(),
  enrolledMs: timeMs,
  heartbeatMs: timeMs.nullable().describe('When it was last heard of; null: never.'),
  skewMs: z.number().nullable().describe("Its clock less the server's."),
  recoveries: list(named).describe('Those that it holds clones of.'),
  status: proxyStatus.nullable().describe('What it said then.'),
});
export type ProxyView = z.infer<typeof proxyView>;

export const drainRequest = z.strictObject({
  undo: flag.default(false).describe('Give it work again.'),
});
export type DrainRequest = z.output<typeof drainRequest>;

export const proxyChange = z.strictObject({
  labels: labels.optional().describe('In place of those it has.'),
  onlyFor: z.array(place, 'must be a list of names').max(256).optional(),
  neverFor: z.array(place, 'must be a list of names').max(256).optional(),
});
export type ProxyChange = z.output<typeof proxyChange>;

/** `proxy`: its name. Every method throws `not-found` with the nearest names. */
export interface ProxyService {
  list(): Promise<readonly ProxyView[]>;
  get(proxy: string): Promise<ProxyView>;
  /** What runs there goes on; nothing new is begun. */
  drain(proxy: string, request: DrainRequest): Promise<ProxyView>;
  change(proxy: string, change: ProxyChange): Promise<ProxyView>;
  /** Its certificate is refused from now on. Throws `busy` while a recovery lives there. */
  remove(proxy: string): Promise<void>;
}

export const tokenRequest = z.strictObject({
  name: proxyName
    .optional()
    .describe('For a proxy of this name alone; one that is known joins anew.'),
  lifeMs: z
    .int('must be a number of milliseconds')
    .min(1, 'must end in the future')
    .max(linkLimits.tokenMsMax, 'must be at most a week')
    .optional()
    .describe('An hour when missing.'),
  address: z
    .union([z.ipv4(), z.ipv6()], 'must be an IP address')
    .optional()
    .describe('Where the other machine reaches this server; found out when missing.'),
});
export type TokenRequest = z.output<typeof tokenRequest>;

export const proxyToken = z.object({
  token: z.string().describe('Good once, for one proxy.'),
  server: z.string().describe('https://HOST:PORT'),
  fingerprint: z.string().describe("SHA-256 of the server's certificate; the token holds it."),
  name: z.string().nullable(),
  expiresMs: timeMs,
});
export type ProxyToken = z.infer<typeof proxyToken>;

export interface ProxyTokenService {
  /** Throws `wrong-state` when the server has no port for proxies of other machines. */
  newToken(request: TokenRequest): Promise<ProxyToken>;
}

/** Names in the OpenAPI document. */
z.globalRegistry.add(proxyView, { id: 'Proxy' });
z.globalRegistry.add(proxyToken, { id: 'ProxyToken' });
