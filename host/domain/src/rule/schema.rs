//! The schema of a condition: an object with exactly one member, as serde writes an enum.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, ObjectBuilder, RefOr, Schema,
        schema::{AdditionalProperties, RefBuilder},
    },
};

use super::{AmountCondition, Condition, CustomCondition, CustomerCondition, GeographyCondition, IndustryCondition};

impl PartialSchema for Condition {
    fn schema() -> RefOr<Schema> {
        let list = || ArrayBuilder::new().items(reference::<Self>().build()).min_items(Some(1));
        ObjectBuilder::new()
            .description(Some("A requirement on a message: exactly one of these."))
            .property("all", list().description(Some("Each holds.")))
            .property("any", list().description(Some("One holds.")))
            .property("not", reference::<Self>().description(Some("It does not hold.")))
            .property("amount", reference::<AmountCondition>())
            .property("customer", reference::<CustomerCondition>())
            .property("industry", reference::<IndustryCondition>())
            .property("geography", reference::<GeographyCondition>())
            .property("custom", reference::<CustomCondition>())
            .additional_properties(Some(AdditionalProperties::FreeForm(false)))
            .min_properties(Some(1))
            .max_properties(Some(1))
            .into()
    }
}

impl ToSchema for Condition {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("RuleCondition")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        add::<AmountCondition>(schemas);
        add::<CustomerCondition>(schemas);
        add::<IndustryCondition>(schemas);
        add::<GeographyCondition>(schemas);
        add::<CustomCondition>(schemas);
    }
}

fn reference<T: ToSchema>() -> RefBuilder {
    RefBuilder::new().ref_location_from_schema_name(T::name())
}

fn add<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}
