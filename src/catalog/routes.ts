import { z } from 'zod';
import { list } from '../lib/fields.ts';
import { route, type Route, type RouteEvent } from '../lib/route.ts';
import {
  type CatalogService,
  eventFilter,
  type EventService,
  eventView,
  type ExportService,
  exportView,
  hypervisorRequest,
  type HypervisorService,
  hypervisorView,
  inventory,
  machineView,
  savesetFilter,
  savesetView,
  status,
  type StatusService,
  testReport,
} from './schema.ts';

export function catalogRoutes(catalog: CatalogService): readonly Route[] {
  return [
    route({
      method: 'GET',
      path: '/v1/machines',
      summary: 'Machines of the hypervisors, and those that only savesets remember',
      tag: 'catalog',
      answer: z.object({ machines: list(machineView) }),
      handle: async () => ({ machines: await catalog.machines() }),
    }),
    route({
      method: 'GET',
      path: '/v1/machines/:machine',
      summary: 'One machine',
      tag: 'catalog',
      params: ['machine'],
      answer: machineView,
      handle: ({ params }) => catalog.machine(params.machine),
    }),
    route({
      method: 'GET',
      path: '/v1/savesets',
      summary: 'Savesets, newest first',
      tag: 'catalog',
      query: savesetFilter,
      answer: z.object({ savesets: list(savesetView) }),
      handle: async ({ query }) => ({ savesets: await catalog.savesets(query) }),
    }),
    route({
      method: 'GET',
      path: '/v1/savesets/:saveset',
      summary: 'One saveset',
      tag: 'catalog',
      params: ['saveset'],
      answer: savesetView,
      handle: ({ params }) => catalog.saveset(params.saveset),
    }),
  ];
}

const oneHypervisor = '/v1/hypervisors/:hypervisor';

export function hypervisorRoutes(hypervisors: HypervisorService): readonly Route[] {
  const tag = 'hypervisors';
  const params = ['hypervisor'] as const;
  return [
    route({
      method: 'GET',
      path: '/v1/hypervisors',
      summary: 'Hypervisor managers that Rouse knows',
      tag,
      answer: z.object({ hypervisors: list(hypervisorView) }),
      handle: async () => ({ hypervisors: await hypervisors.list() }),
    }),
    route({
      method: 'POST',
      path: '/v1/hypervisors',
      summary: 'Adds one, once its test is passed',
      tag,
      body: hypervisorRequest,
      answer: hypervisorView,
      status: 201,
      location: (answer) => {
        const added = hypervisorView.pick({ id: true }).safeParse(answer);
        return added.success ? `/v1/hypervisors/${added.data.id}` : undefined;
      },
      handle: ({ body }) => hypervisors.add(body),
    }),
    route({
      method: 'GET',
      path: oneHypervisor,
      summary: 'One hypervisor manager',
      tag,
      params,
      answer: hypervisorView,
      handle: ({ params }) => hypervisors.get(params.hypervisor),
    }),
    route({
      method: 'DELETE',
      path: oneHypervisor,
      summary: 'Forgets one; changes nothing on it',
      tag,
      params,
      status: 204,
      handle: ({ params }) => hypervisors.remove(params.hypervisor),
    }),
    route({
      method: 'POST',
      path: `${oneHypervisor}/test`,
      summary: 'Everything that is wrong with it, at once; changes nothing',
      tag,
      params,
      answer: testReport,
      handle: ({ params }) => hypervisors.test(params.hypervisor),
    }),
    route({
      method: 'GET',
      path: `${oneHypervisor}/inventory`,
      summary: 'Its clusters, hosts, networks, datastores and machines',
      tag,
      params,
      answer: inventory,
      handle: ({ params }) => hypervisors.inventory(params.hypervisor),
    }),
  ];
}

export function statusRoutes(
  status_: StatusService,
  exports: ExportService,
  events: EventService,
): readonly Route[] {
  return [
    route({
      method: 'GET',
      path: '/v1/status',
      summary: 'Server, proxy, vault and what they are busy with',
      tag: 'status',
      answer: status,
      handle: () => status_.status(),
    }),
    route({
      method: 'GET',
      path: '/v1/exports',
      summary: 'NFS exports: whom they answer, and what was asked of them',
      tag: 'status',
      answer: z.object({ exports: list(exportView) }),
      handle: async () => ({ exports: await exports.list() }),
    }),
    route({
      method: 'GET',
      path: '/v1/events',
      summary: 'What happened; as a stream: what happens from now on, or after the given event',
      tag: 'status',
      query: eventFilter,
      answer: z.object({ events: list(eventView) }),
      handle: async ({ query }) => ({ events: await events.list(query) }),
      events: ({ query, signal }) => numbered(events, query.after, signal),
    }),
  ];
}

async function* numbered(
  events: EventService,
  after: number | undefined,
  signal: AbortSignal,
): AsyncGenerator<RouteEvent> {
  for await (const event of events.watch(after, signal)) {
    yield { event: 'event', id: String(event.id), data: event };
  }
}
