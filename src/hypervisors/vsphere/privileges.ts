import type { VimClient } from './client.ts';
import { isFault } from './faults.ts';
import { entityName } from './names.ts';
import { readExisting } from './properties.ts';
import { all, flagAt, leaf, refAt, reference, sameRef, textAt } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

/** Objects that privileges are needed on, and which. */
export interface Places {
  readonly host: Ref;
  readonly pool: Ref;
  readonly folder: Ref;
  readonly datacenter: Ref;
}
export type Need = Readonly<Record<keyof Places, readonly string[]>>;

export interface Missing {
  readonly privilege: string;
  /** For people: `folder vm`, `host esx1`. */
  readonly object: string;
}

/** What AuthorizationManager does not grant to this session; on ESXi itself the user is asked for. */
export async function missingPrivileges(
  client: VimClient,
  places: Places,
  need: Need,
): Promise<readonly Missing[]> {
  const kinds = ['host', 'pool', 'folder', 'datacenter'] as const;
  const names = await namesOf(
    client,
    kinds.map((kind) => places[kind]),
  );
  const missing: Missing[] = [];
  for (const kind of kinds) {
    const granted = await grantedOn(client, places[kind], need[kind]);
    const name = names.find(({ ref }) => sameRef(ref, places[kind]))?.name ?? places[kind].id;
    for (const privilege of need[kind]) {
      if (!granted.has(privilege)) missing.push({ privilege, object: `${kind} ${name}` });
    }
  }
  return missing;
}

async function namesOf(client: VimClient, refs: readonly Ref[]) {
  const found = await readExisting(client, refs, ['name']);
  return found.map((one) => ({ ref: one.ref, name: entityName(one.text('name')) }));
}

async function grantedOn(
  client: VimClient,
  entity: Ref,
  privileges: readonly string[],
): Promise<ReadonlySet<string>> {
  const manager = await client.manager('authorizationManager');
  try {
    const answer = await client.call('HasPrivilegeOnEntities', manager, [
      reference('entity', entity),
      leaf('sessionId', await client.sessionKey()),
      ...privileges.map((id) => leaf('privId', id)),
    ]);
    const said = all(answer, 'returnval').find((one) => sameRef(refAt(one, 'entity'), entity));
    const granted = all(said, 'privAvailability').filter((one) => flagAt(one, 'isGranted'));
    return new Set(granted.map((one) => textAt(one, 'privId') ?? ''));
  } catch (error) {
    if (!isFault(error, 'NotSupported', 'MethodNotFound', 'InvalidArgument')) throw error;
  }
  const answer = await client.call('FetchUserPrivilegeOnEntities', manager, [
    reference('entities', entity),
    leaf('userName', await client.userName()),
  ]);
  const results = all(answer, 'returnval').filter((one) => sameRef(refAt(one, 'entity'), entity));
  return new Set(results.flatMap((one) => all(one, 'privileges').map(({ text }) => text)));
}
