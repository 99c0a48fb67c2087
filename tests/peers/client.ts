// What a program may say with the generated types: it is only compiled.
import type { components, operations, paths } from "./types";

const message: components["schemas"]["NewMessage"] = {
  to: { address: "ann@example.org", name: "Ann" },
  channel: "email",
  content: { from: "shop@example.com", subject: "Your invoice", text: "Thank you.", payload: { any: ["thing", 1] } },
  idempotency_key: "invoice-7",
};
const batch: operations["createMessages"]["requestBody"]["content"]["application/json"] = { messages: [message] };
const policy: components["schemas"]["RetryPolicy"] = {
  type: "custom",
  rule: "patience",
  otherwise: { type: "linear", delay_ms: 1000, max_attempts: 3 },
};
// @ts-expect-error: a list is no address.
const list: components["schemas"]["NewMessage"] = { to: ["ann@example.org"], content: {} };
type Listed = paths["/v1/messages"]["get"]["responses"]["200"]["content"]["application/json"];
export const next = (page: Listed): string | null | undefined => page.next_cursor;
export { batch, list, policy };
