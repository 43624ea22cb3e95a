import { z } from 'zod';
import { savesetView } from '../catalog/schema.ts';
import { list } from '../lib/fields.ts';
import { changes, route, type Route } from '../lib/route.ts';
import { reconcileReport, reconcileRequest, type ReconcileService } from './reconcile-schema.ts';
import {
  cancelRequest,
  recovery,
  recoveryFilter,
  recoveryPlan,
  recoveryRequest,
  type RecoveryService,
  relocateRequest,
  renewRequest,
  sealing,
} from './schema.ts';

const tag = 'recoveries';
const one = '/v1/recoveries/:recovery';
const params = ['recovery'] as const;

/** `:recovery` is an id, a name, or the name of the machine (schema.ts: RecoveryService). */
export function recoveryRoutes(recoveries: RecoveryService): readonly Route[] {
  return [
    route({
      method: 'POST',
      path: '/v1/recoveries',
      summary: 'Begins a recovery; with dryRun, answers its plan and changes nothing',
      tag,
      body: recoveryRequest,
      answer: z.union([recovery, recoveryPlan]),
      status: 202,
      location: (answer) => {
        const begun = recovery.pick({ id: true }).safeParse(answer);
        return begun.success ? `/v1/recoveries/${begun.data.id}` : undefined;
      },
      handle: ({ body }) => (body.dryRun ? recoveries.plan(body) : recoveries.create(body)),
    }),
    route({
      method: 'GET',
      path: '/v1/recoveries',
      summary: 'Recoveries, newest first',
      tag,
      query: recoveryFilter,
      answer: z.object({ recoveries: list(recovery) }),
      handle: async ({ query }) => ({ recoveries: await recoveries.list(query) }),
    }),
    route({
      method: 'GET',
      path: one,
      summary: 'One recovery with its thirteen steps',
      tag,
      params,
      answer: recovery,
      handle: ({ params }) => recoveries.get(params.recovery),
    }),
    route({
      method: 'GET',
      path: `${one}/events`,
      summary: 'The recovery as it is, then every change of it',
      tag,
      params,
      answer: recovery,
      events: ({ params, signal }) => changes(recoveries.watch(params.recovery, signal)),
    }),
    route({
      method: 'GET',
      path: `${one}/picture`,
      summary: "A picture of the machine's screen",
      tag,
      params,
      bytes: { type: 'image/png', read: ({ params }) => recoveries.picture(params.recovery) },
    }),
    ...actionRoutes(recoveries),
    ...sealRoutes(recoveries),
  ];
}

export function reconcileRoutes(reconciler: ReconcileService): readonly Route[] {
  return [
    route({
      method: 'POST',
      path: '/v1/reconcile',
      summary: 'Compares what should be with what is, and mends the difference',
      tag,
      body: reconcileRequest,
      answer: reconcileReport,
      handle: ({ body }) => reconciler.reconcile(body),
    }),
  ];
}

function actionRoutes(recoveries: RecoveryService): readonly Route[] {
  return [
    route({
      method: 'POST',
      path: `${one}/cancel`,
      summary: 'Ends it and cleans up; what was written is discarded unless keepWrites',
      tag,
      params,
      body: cancelRequest,
      answer: recovery,
      status: 202,
      handle: ({ params, body }) => recoveries.cancel(params.recovery, body),
    }),
    route({
      method: 'POST',
      path: `${one}/renew`,
      summary: 'Sets a new end of the lease, counted from now',
      tag,
      params,
      body: renewRequest,
      answer: recovery,
      handle: ({ params, body }) => recoveries.renew(params.recovery, body),
    }),
    route({
      method: 'POST',
      path: `${one}/relocate`,
      summary: 'Moves the disks of the running machine to a production datastore',
      tag,
      params,
      body: relocateRequest,
      answer: recovery,
      status: 202,
      handle: ({ params, body }) => recoveries.relocate(params.recovery, body),
    }),
    route({
      method: 'POST',
      path: `${one}/seal`,
      summary: 'Makes a new saveset of the clone with all that was written to it',
      tag,
      params,
      answer: savesetView,
      status: 201,
      handle: ({ params }) => recoveries.seal(params.recovery),
    }),
    route({
      method: 'POST',
      path: `${one}/resume`,
      summary: 'A parked recovery goes on',
      tag,
      params,
      answer: recovery,
      status: 202,
      handle: ({ params }) => recoveries.resume(params.recovery),
    }),
  ];
}

function sealRoutes({ seals }: RecoveryService): readonly Route[] {
  const path = `${one}/seals` as const;
  const params = ['recovery', 'seal'] as const;
  return [
    route({
      method: 'POST',
      path,
      summary: 'Begins to make a saveset of the clone, and answers at once',
      tag,
      params: ['recovery'] as const,
      answer: sealing,
      status: 202,
      handle: ({ params }) => seals.begin(params.recovery),
    }),
    route({
      method: 'GET',
      path,
      summary: 'Sealings of a recovery, newest first',
      tag,
      params: ['recovery'] as const,
      answer: z.object({ seals: list(sealing) }),
      handle: async ({ params }) => ({ seals: await seals.list(params.recovery) }),
    }),
    route({
      method: 'GET',
      path: `${path}/:seal/events`,
      summary: 'The sealing as it is, then every change of it',
      tag,
      params,
      answer: sealing,
      events: ({ params, signal }) => changes(seals.watch(params.recovery, params.seal, signal)),
    }),
    route({
      method: 'POST',
      path: `${path}/:seal/cancel`,
      summary: 'Stops it; what was stored is reused by the next one',
      tag,
      params,
      answer: sealing,
      handle: ({ params }) => seals.cancel(params.recovery, params.seal),
    }),
  ];
}
