import { RouseError } from '../../errors.ts';
import { vsphereLimits } from './limits.ts';
import type { CallOptions, VimClient } from './client.ts';
import { faultError, isFault } from './faults.ts';
import { all, at, leaf, node, refAt, reference, textAt } from './vim-xml.ts';
import type { Ref, VimNode, Xml } from './vim-xml.ts';

/**
 * Reading with the property collector: objects by reference or all of some types, in pages; what
 * may not be read, or is not set, is simply not there.
 */
export class Found {
  readonly ref: Ref;
  readonly #values: ReadonlyMap<string, VimNode>;

  constructor(ref: Ref, values: ReadonlyMap<string, VimNode>) {
    this.ref = ref;
    this.#values = values;
  }

  /** The value of a property that was asked for. */
  get(path: string): VimNode | undefined {
    return this.#values.get(path);
  }

  text(path: string): string | undefined {
    return this.get(path)?.text;
  }
}

/** Property paths by type: `{ HostSystem: ['name', 'parent'] }`. */
export type Wanted = Readonly<Record<string, readonly string[]>>;

/** One object. Throws `not-found` (ManagedObjectNotFound) when it is gone. */
export async function readOne(
  client: VimClient,
  ref: Ref,
  paths: readonly string[],
): Promise<Found> {
  const [found] = await readMany(client, [ref], paths);
  if (found !== undefined) return found;
  throw new RouseError('not-found', `there is no ${ref.type} ${ref.id}`);
}

/** Objects of one type, in no particular order. */
export async function readMany(
  client: VimClient,
  refs: readonly Ref[],
  paths: readonly string[],
): Promise<Found[]> {
  const found: Found[] = [];
  for (let from = 0; from < refs.length; from += vsphereLimits.namedObjectsMax) {
    const some = refs.slice(from, from + vsphereLimits.namedObjectsMax);
    const types = [...new Set(some.map(({ type }) => type))];
    const spec = node('specSet', [
      ...types.map((type) => propertySpec(type, paths)),
      ...some.map((ref) => node('objectSet', [reference('obj', ref), leaf('skip', false)])),
    ]);
    // Its pages are asked for with a token that belongs to the session.
    const page = await client.inSession(() => readPages(client, spec, (more) => found.push(more)));
    if (page === 0) break;
  }
  return found;
}

/** Those of `refs` that still exist: one that vanishes meanwhile fails the rest of a page. */
export async function readExisting(
  client: VimClient,
  refs: readonly Ref[],
  paths: readonly string[],
): Promise<Found[]> {
  try {
    return await readMany(client, refs, paths);
  } catch (error) {
    if (!isFault(error, 'ManagedObjectNotFound')) throw error;
  }
  const found: Found[] = [];
  for (const ref of refs) {
    try {
      found.push(await readOne(client, ref, paths));
    } catch (error) {
      if (!isFault(error, 'ManagedObjectNotFound')) throw error;
    }
  }
  return found;
}

/** Every object of those types below the root folder, a page at a time, through one view. */
export async function readAll(
  client: VimClient,
  wanted: Wanted,
  each: (found: Found) => void,
): Promise<void> {
  const pages: Found[] = [];
  await client.inSession(async () => {
    pages.length = 0;
    await throughView(client, wanted, (found) => pages.push(found));
  });
  for (const found of pages) each(found);
}

async function throughView(
  client: VimClient,
  wanted: Wanted,
  each: (found: Found) => void,
): Promise<void> {
  const { rootFolder } = await client.service();
  const viewManager = await client.manager('viewManager');
  const types = Object.keys(wanted);
  const answer = await client.call('CreateContainerView', viewManager, [
    reference('container', rootFolder),
    ...types.map((type) => leaf('type', type)),
    leaf('recursive', true),
  ]);
  const view = refAt(answer, 'returnval');
  if (view === undefined) throw new RouseError('hypervisor-error', 'the manager made no view');
  const spec = node('specSet', [
    ...types.map((type) => propertySpec(type, wanted[type] ?? [])),
    node('objectSet', [
      reference('obj', view),
      leaf('skip', true),
      node(
        'selectSet',
        [leaf('name', 'all'), leaf('type', view.type), leaf('path', 'view'), leaf('skip', false)],
        'TraversalSpec',
      ),
    ]),
  ]);
  try {
    await readPages(client, spec, each);
  } finally {
    await client.call('DestroyView', view, [], { bound: true }).catch(ignoreFault);
  }
}

/** Schema order: type, all, pathSet. */
export function propertySpec(type: string, paths: readonly string[]): Xml {
  return node('propSet', [
    leaf('type', type),
    leaf('all', false),
    ...paths.map((path) => leaf('pathSet', path)),
  ]);
}

async function readPages(
  client: VimClient,
  spec: Xml,
  each: (found: Found) => void,
): Promise<number> {
  const { propertyCollector } = await client.service();
  const options: CallOptions = { bound: true };
  const args = [spec, node('options', [leaf('maxObjects', vsphereLimits.pageObjects)])];
  let answer = await client.call('RetrievePropertiesEx', propertyCollector, args, options);
  let count = 0;
  for (;;) {
    const page = at(answer, 'returnval');
    for (const object of all(page, 'objects')) {
      const found = foundOf(object);
      if (found !== undefined) {
        count += 1;
        each(found);
      }
    }
    const token = textAt(page, 'token') ?? '';
    if (token === '') return count;
    answer = await client.call(
      'ContinueRetrievePropertiesEx',
      propertyCollector,
      [leaf('token', token)],
      options,
    );
  }
}

/** ObjectContent: obj, propSet { name, val }, missingSet { path, fault }. */
function foundOf(object: VimNode): Found | undefined {
  const ref = refAt(object, 'obj');
  if (ref === undefined) return undefined;
  for (const missing of all(object, 'missingSet')) {
    // A session that ended is told here as well, property by property.
    const fault = faultError(
      at(missing, 'fault.fault'),
      textAt(missing, 'fault.localizedMessage'),
      ref.id,
    );
    if (isFault(fault, 'NotAuthenticated')) throw fault;
  }
  const values = new Map<string, VimNode>();
  for (const property of all(object, 'propSet')) {
    const value = at(property, 'val');
    if (value !== undefined) values.set(textAt(property, 'name') ?? '', value);
  }
  return new Found(ref, values);
}

/** What is thrown away after use may be gone already. */
export function ignoreFault(error: unknown): void {
  if (!(error instanceof RouseError)) throw error;
}
