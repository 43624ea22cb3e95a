import { z } from 'zod';
import { list } from '../lib/fields.ts';
import { route, type Route } from '../lib/route.ts';
import { drainRequest, proxyChange, type ProxyService, proxyView } from './schema.ts';
import { proxyToken, type ProxyTokenService, tokenRequest } from './schema.ts';

const tag = 'proxies';
const one = '/v1/proxies/:proxy';
const params = ['proxy'] as const;

export function proxyRoutes(proxies: ProxyService, tokens: ProxyTokenService): readonly Route[] {
  return [
    route({
      method: 'POST',
      path: '/v1/proxy-tokens',
      summary: 'A token with which one proxy on another machine joins, once',
      tag,
      body: tokenRequest,
      answer: proxyToken,
      status: 201,
      handle: ({ body }) => tokens.newToken(body),
    }),
    route({
      method: 'GET',
      path: '/v1/proxies',
      summary: 'The proxies, by name',
      tag,
      answer: z.object({ proxies: list(proxyView) }),
      handle: async () => ({ proxies: await proxies.list() }),
    }),
    route({
      method: 'GET',
      path: one,
      summary: 'One proxy, with what it last said of itself',
      tag,
      params,
      answer: proxyView,
      handle: ({ params }) => proxies.get(params.proxy),
    }),
    route({
      method: 'POST',
      path: one,
      summary: 'Changes its labels, pins and exclusions',
      tag,
      params,
      body: proxyChange,
      answer: proxyView,
      handle: ({ params, body }) => proxies.change(params.proxy, body),
    }),
    route({
      method: 'POST',
      path: `${one}/drain`,
      summary: 'No new work for it; what runs there goes on',
      tag,
      params,
      body: drainRequest,
      answer: proxyView,
      handle: ({ params, body }) => proxies.drain(params.proxy, body),
    }),
    route({
      method: 'DELETE',
      path: one,
      summary: 'Forgets an enrolled proxy: its certificate is refused from now on',
      tag,
      params,
      status: 204,
      handle: ({ params }) => proxies.remove(params.proxy),
    }),
  ];
}
