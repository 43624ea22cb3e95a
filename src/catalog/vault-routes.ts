import { z } from 'zod';
import { list } from '../lib/fields.ts';
import { changes, route, type Route } from '../lib/route.ts';
import {
  mtree,
  mtreeRequest,
  vaultJob,
  type VaultService,
  vaultStats,
  verifyRequest,
} from './schema.ts';

const tag = 'vault';
const oneJob = '/v1/vault/jobs/:job';
const params = ['job'] as const;

export function vaultRoutes(vault: VaultService): readonly Route[] {
  return [
    route({
      method: 'GET',
      path: '/v1/vault',
      summary: 'Logical, unique and stored size of the vault, and its ratios',
      tag,
      answer: vaultStats,
      handle: () => vault.stats(),
    }),
    route({
      method: 'GET',
      path: '/v1/mtrees',
      summary: 'The named parts of the vault',
      tag,
      answer: z.object({ mtrees: list(mtree) }),
      handle: async () => ({ mtrees: await vault.mtrees() }),
    }),
    route({
      method: 'POST',
      path: '/v1/mtrees',
      summary: 'Makes a new part of the vault',
      tag,
      body: mtreeRequest,
      answer: mtree,
      status: 201,
      handle: ({ body }) => vault.createMtree(body),
    }),
    ...jobRoutes(vault),
  ];
}

function jobRoutes(vault: VaultService): readonly Route[] {
  return [
    route({
      method: 'POST',
      path: '/v1/vault/verify',
      summary: 'Begins to read and hash again every block that savesets need',
      tag,
      body: verifyRequest,
      answer: vaultJob,
      status: 202,
      handle: ({ body }) => vault.verify(body),
    }),
    route({
      method: 'POST',
      path: '/v1/vault/rescan',
      summary: 'Begins to rebuild index and catalog from the packs alone',
      tag,
      answer: vaultJob,
      status: 202,
      handle: () => vault.rescan(),
    }),
    route({
      method: 'GET',
      path: oneJob,
      summary: 'One verification or rescan',
      tag,
      params,
      answer: vaultJob,
      handle: ({ params }) => vault.job(params.job),
    }),
    route({
      method: 'GET',
      path: `${oneJob}/events`,
      summary: 'The job as it is, then its progress until it has ended',
      tag,
      params,
      answer: vaultJob,
      events: ({ params, signal }) => changes(vault.watchJob(params.job, signal)),
    }),
    route({
      method: 'POST',
      path: `${oneJob}/cancel`,
      summary: 'Stops it',
      tag,
      params,
      answer: vaultJob,
      handle: ({ params }) => vault.cancelJob(params.job),
    }),
  ];
}
