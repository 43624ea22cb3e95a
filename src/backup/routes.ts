import { z } from 'zod';
import { list } from '../lib/fields.ts';
import { changes, route, type Route } from '../lib/route.ts';
import { backup, backupFilter, backupRequest, type BackupService } from './schema.ts';

const tag = 'backups';
const one = '/v1/backups/:backup';
const params = ['backup'] as const;

/** `:backup` is an id, or the name of a machine: the newest backup of it. */
export function backupRoutes(backups: BackupService): readonly Route[] {
  return [
    route({
      method: 'POST',
      path: '/v1/backups',
      summary: 'Begins a backup of a machine, or of disks in files',
      tag,
      body: backupRequest,
      answer: backup,
      status: 202,
      location: (answer) => {
        const begun = backup.pick({ id: true }).safeParse(answer);
        return begun.success ? `/v1/backups/${begun.data.id}` : undefined;
      },
      handle: ({ body }) => backups.start(body),
    }),
    route({
      method: 'GET',
      path: '/v1/backups',
      summary: 'Backups, newest first',
      tag,
      query: backupFilter,
      answer: z.object({ backups: list(backup) }),
      handle: async ({ query }) => ({ backups: await backups.list(query) }),
    }),
    route({
      method: 'GET',
      path: one,
      summary: 'One backup',
      tag,
      params,
      answer: backup,
      handle: ({ params }) => backups.get(params.backup),
    }),
    route({
      method: 'GET',
      path: `${one}/events`,
      summary: 'The backup as it is, then its progress until it has ended',
      tag,
      params,
      answer: backup,
      events: ({ params, signal }) => changes(backups.watch(params.backup, signal)),
    }),
    route({
      method: 'POST',
      path: `${one}/cancel`,
      summary: 'Stops it; what was stored is reused by the next backup',
      tag,
      params,
      answer: backup,
      handle: ({ params }) => backups.cancel(params.backup),
    }),
  ];
}
