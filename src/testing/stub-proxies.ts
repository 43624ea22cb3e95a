import { pick } from '../lib/text.ts';
import type { ProxyService, ProxyTokenService, ProxyView } from '../placement/schema.ts';
import { stubNowMs, stubStatus } from './stub-views.ts';

const stubProxies: readonly ProxyView[] = ['local', 'a-proxy-with-a-long-name-in-paris'].map(
  (name, index) => ({
    name,
    kind: index === 0 ? 'embedded' : 'enrolled',
    state: index === 0 ? 'connected' : 'disconnected',
    problem: index === 0 ? null : 'it speaks version 2, the server 1: update the server',
    draining: false,
    addresses: [index === 0 ? '192.0.2.1' : '2001:db8:1234:5678:9abc:def0:1234:5678'],
    calledAt: index === 0 ? null : '[2001:db8::7]:9444',
    labels: index === 0 ? {} : { site: 'paris' },
    onlyFor: [],
    neverFor: [],
    devices: [{ id: name, name }],
    fingerprint: null,
    certificateEndsMs: null,
    enrolledMs: stubNowMs - 86_400_000,
    heartbeatMs: stubNowMs - 2_000,
    skewMs: index === 0 ? 0 : 90_000,
    recoveries: [],
    status: stubStatus.proxy,
  }),
);

/** The proxies of stub-services.ts: one that is well, and one that is wrong in every way. */
export function proxyService(calls: unknown[]): ProxyService {
  const proxies = new Map(stubProxies.map((view) => [view.name, view]));
  const find = (reference: string): ProxyView => {
    const named = [...proxies.values()].map((view) => ({ ...view, id: view.name, view }));
    return pick('proxy', reference, named).view;
  };
  const change = (reference: string, what: unknown[], more: Partial<ProxyView>) => {
    calls.push(what);
    const view = { ...find(reference), ...more };
    proxies.set(view.name, view);
    return view;
  };
  return {
    list: async () => [...proxies.values()],
    get: async (reference) => find(reference),
    drain: async (reference, request) =>
      change(reference, ['drain', reference, request], {
        draining: !request.undo,
        state: request.undo ? 'connected' : 'draining',
      }),
    change: async (reference, { labels = {}, onlyFor = [], neverFor = [] }) =>
      change(reference, ['change', reference, labels], { labels, onlyFor, neverFor }),
    remove: async (reference) => {
      calls.push(['remove', reference]);
      proxies.delete(find(reference).name);
    },
  };
}

export const proxyTokens: ProxyTokenService = {
  newToken: async ({ name, lifeMs }) => ({
    token: 'rouse-AQIDBA',
    server: 'https://192.0.2.1:9443',
    fingerprint: Array.from({ length: 32 }, () => 'AB').join(':'),
    name: name ?? null,
    expiresMs: stubNowMs + (lifeMs ?? 3_600_000),
  }),
};
