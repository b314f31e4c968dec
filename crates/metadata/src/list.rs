//! Pages of nodes: order, filter, token.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::list_operation_options::order_by_field::Field;
use prost::Message as _;

use crate::database::{Param, Tx};
use crate::failure::{Failure, Outcome};
use crate::filter;
use crate::model::{Kind, Node};
use crate::nodes;

/// Most nodes on one page.
const LARGEST_PAGE: i32 = 100;
const TOKENS: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Which nodes a list call is about.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// Every node of the kind.
    All,
    /// The nodes of a type.
    OfType(i64),
    /// The artifacts or executions of a context.
    InContext(i64),
}

/// One page and the token of the next one ("" at the end).
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In the order asked for.
    pub nodes: Vec<Node>,
    /// Empty when nothing follows.
    pub next_page_token: String,
}

impl Page {
    /// The token as a response field: unset at the end.
    #[must_use]
    pub fn token(&self) -> Option<String> {
        Some(self.next_page_token.clone()).filter(|token| !token.is_empty())
    }
}

struct Order {
    column: &'static str,
    ascending: bool,
}

fn order(options: &pb::ListOperationOptions) -> Outcome<Order> {
    let by = options.order_by_field.unwrap_or_default();
    let column = match by.field() {
        Field::Id => "id",
        Field::CreateTime => "create_time_since_epoch",
        Field::LastUpdateTime => "last_update_time_since_epoch",
        Field::Unspecified => {
            return Err(Failure::invalid("Unsupported field: FIELD_UNSPECIFIED specified in ListOperationOptions"));
        }
    };
    Ok(Order { column, ascending: by.is_asc() })
}

fn decode_token(token: &str, order: &Order) -> Outcome<(i64, i64)> {
    let bytes = TOKENS
        .decode(token)
        .map_err(|_| Failure::invalid(format!("Failed to decode next page token string {token:?}")))?;
    let decoded = pb::ListOperationNextPageToken::decode(bytes.as_slice()).ok();
    let fields = decoded.and_then(|token| Some((token.id_offset?, token.field_offset?, token.set_options?)));
    let Some((id, field, options)) = fields else {
        return Err(Failure::invalid(format!(
            "Failed to parse decoded next page token {token:?} into a ListOperationNextPageToken message"
        )));
    };
    // The page size and the filter may change between calls; with another order the position means nothing.
    let first = self::order(&options)?;
    if first.column != order.column || first.ascending != order.ascending {
        return Err(Failure::invalid("ListOperationOptions mismatch between calls: the token has another order"));
    }
    Ok((field, id))
}

fn encode_token(last: &Node, order: &Order, options: &pb::ListOperationOptions) -> String {
    let field = match order.column {
        "create_time_since_epoch" => last.created,
        "last_update_time_since_epoch" => last.updated,
        _ => last.id,
    };
    let set_options = pb::ListOperationOptions { next_page_token: None, ..options.clone() };
    let token = pb::ListOperationNextPageToken {
        id_offset: last.id,
        field_offset: field,
        set_options: Some(set_options),
        listed_ids: Vec::new(),
    };
    TOKENS.encode(token.encode_to_vec())
}

/// Lists nodes. Without options: all of them, ascending by id; with options: one page.
///
/// # Errors
/// INVALID_ARGUMENT for a page size below one, a token that is none, or a filter that is wrong.
pub async fn list(tx: &mut Tx, kind: Kind, scope: Scope, options: Option<&pb::ListOperationOptions>) -> Outcome<Page> {
    let table = kind.table();
    let (mut joins, mut join_params) = (String::new(), Vec::new());
    let (mut conditions, mut params) = (Vec::new(), Vec::new());
    match scope {
        Scope::All => {}
        Scope::OfType(id) => {
            conditions.push("N.`type_id` = ?".to_owned());
            params.push(Param::Int(id));
        }
        Scope::InContext(id) => {
            let Some(link) = kind.context_link() else { return Ok(Page::default()) };
            joins = format!(" JOIN `{link}` L ON L.`{}` = N.`id` AND L.`context_id` = ?", kind.id_column());
            join_params.push(Param::Int(id));
        }
    }
    let Some(options) = options else {
        let filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
        join_params.extend(params);
        let set = format!("(SELECT N.`id` FROM `{table}` N{joins}{filter})");
        let nodes = nodes::select(tx, kind, &set, join_params).await?;
        return Ok(Page { nodes, next_page_token: String::new() });
    };
    let size = options.max_result_size();
    if size <= 0 {
        return Err(Failure::invalid(format!(
            "max_result_size field value is required to be greater than 0 and less than or equal to 100. \
             Set value:{size}"
        )));
    }
    let size = usize::try_from(size.min(LARGEST_PAGE)).unwrap_or_default();
    let order = order(options)?;
    if !options.filter_query().is_empty() {
        let filter = filter::compile(kind, options.filter_query())?;
        joins.push_str(&filter.joins);
        join_params.extend(filter.join_params);
        conditions.push(format!("({})", filter.condition));
        params.extend(filter.condition_params);
    }
    if !options.next_page_token().is_empty() {
        let (field, id) = decode_token(options.next_page_token(), &order)?;
        let sign = if order.ascending { '>' } else { '<' };
        conditions.push(format!("(N.`{0}` {sign} ? OR (N.`{0}` = ? AND N.`id` {sign} ?))", order.column));
        params.extend([field, field, id].map(Param::Int));
    }
    let filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    let direction = if order.ascending { "ASC" } else { "DESC" };
    // Joins can meet a node more than once; one row more than the page tells whether another page follows.
    let sql = format!(
        "SELECT DISTINCT N.`id`, N.`{0}` FROM `{table}` N{joins}{filter} \
         ORDER BY N.`{0}` {direction}, N.`id` {direction} LIMIT {1}",
        order.column,
        size + 1
    );
    join_params.extend(params);
    let rows = tx.query(sql, join_params).await?;
    let mut ids = rows.iter().map(|row| row.int(0)).collect::<Outcome<Vec<_>>>()?;
    let more = ids.len() > size;
    ids.truncate(size);
    let mut nodes = nodes::by_id(tx, kind, &ids).await?;
    nodes.sort_by_key(|node| ids.iter().position(|id| Some(*id) == node.id));
    let next_page_token = match nodes.last() {
        Some(last) if more => encode_token(last, &order, options),
        _ => String::new(),
    };
    Ok(Page { nodes, next_page_token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_carry_position_and_order() {
        let options = pb::ListOperationOptions {
            order_by_field: Some(pb::list_operation_options::OrderByField {
                field: Some(Field::CreateTime as i32),
                is_asc: Some(false),
            }),
            ..Default::default()
        };
        let by = order(&options).unwrap();
        let node = Node { id: Some(7), created: Some(99), ..Node::default() };
        let token = encode_token(&node, &by, &options);
        assert_eq!(decode_token(&token, &by), Ok((99, 7)));
        let other = order(&pb::ListOperationOptions::default()).unwrap();
        for (token, by) in [(token.as_str(), &other), ("!!", &by), ("AAAA", &by)] {
            assert_eq!(decode_token(token, by).map_err(|e| e.code), Err(tonic::Code::InvalidArgument));
        }
    }
}
